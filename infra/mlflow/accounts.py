"""Makes MLflow's two accounts, or gives them the passwords of the environment: run before the server, at each start.

`mmrl` may do everything: the worker and the releases have it. `serving` reads. Needs MLFLOW_AUTH_CONFIG_PATH.
"""

import os
import sys

ACCOUNTS = {"mmrl": ("MMRL_MLFLOW_PASSWORD", True), "serving": ("MMRL_MLFLOW_READER_PASSWORD", False)}


def main() -> None:
    passwords = {name: os.environ.get(variable, "") for name, (variable, _) in ACCOUNTS.items()}
    if short := [ACCOUNTS[name][0] for name, password in passwords.items() if len(password) < 12]:
        sys.exit(f"{' and '.join(short)}: MLflow takes no password of fewer than 12 characters; set a longer one")

    from mlflow.server.auth import auth_config, store  # takes seconds

    store.init_db(auth_config.database_uri)
    for name, password in passwords.items():
        is_admin = ACCOUNTS[name][1]
        if store.has_user(name):
            store.update_user(name, password=password, is_admin=is_admin)
        else:
            store.create_user(name, password, is_admin=is_admin)


if __name__ == "__main__":
    main()
