"""The NetworkPolicies of infra/kubernetes, added up as Kubernetes does it."""

from tests.infra.test_kubernetes import DEPLOYMENTS, DOCUMENTS

POLICIES = {one["metadata"]["name"]: one["spec"] for one in DOCUMENTS if one["kind"] == "NetworkPolicy"}


def selected(selector: dict, labels: dict) -> bool:
    matches = selector.get("matchLabels", {}).items() <= labels.items()
    return matches and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))


def reaches(client: dict, server: dict, port: int) -> bool:
    """Whether pods with the one set of labels may go out to a port of the other, and into it."""

    def allowed(pods: dict, others: dict, way: str, side: str) -> bool:
        rules = [rule for one in POLICIES.values() if selected(one["podSelector"], pods) for rule in one.get(way, [])]
        return any(
            port in {one["port"] for one in rule.get("ports", [{"port": port}])}
            and (side not in rule or any("namespaceSelector" not in peer and selected(peer["podSelector"], others)
                                         for peer in rule[side]))
            for rule in rules
        )  # fmt: skip

    return allowed(client, server, "egress", "to") and allowed(server, client, "ingress", "from")


def test_pods_reach_what_they_need_and_nothing_else():
    kinds = {name: DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"] for name in DEPLOYMENTS}
    kinds["ray"] = {"app.kubernetes.io/component": "ray", "app.kubernetes.io/part-of": "mmrl"}
    assert POLICIES["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ports = {"mlflow": 5000, "prefect": 4200, "serving": 8000, "worker": 8080, "ray": 6379}
    found = {(client, server) for server, port in ports.items() for client in kinds
             if reaches(kinds[client], kinds[server], port)}  # fmt: skip
    assert found == {("worker", "mlflow"), ("release", "mlflow"), ("serving", "mlflow"), ("ray", "mlflow"),
                     ("worker", "prefect"), ("release", "prefect"), ("ray", "ray")}  # fmt: skip
    outside = {name: {one["port"] for policy in POLICIES.values() if selected(policy["podSelector"], kinds[name])
                      for rule in policy.get("egress", []) if "to" not in rule for one in rule["ports"]}
               for name in kinds}  # fmt: skip
    assert outside == {"mlflow": {5432, 443}, "prefect": {5432}, "worker": {443, 22}, "release": {443, 22},
                       "ray": {443, 6443}, "serving": set()}  # fmt: skip
