"""Addresses in params.yaml: what can be no host, URL or path of a store is refused before anything asks for it."""

import ipaddress
import re
from urllib.parse import urlsplit

STORES = (
    "sqlite",
    "postgresql",
    "mysql",
    "mssql",
    "http",
    "https",
)  # MLflow's, but for a folder, which has no registry
FILE_SYSTEMS = ("file", "s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss")  # pyarrow's
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def text(value: str) -> str:
    """The name or path. Raises ValueError where it is empty, longer than a path can be or has control characters."""
    if not value.strip() or len(value) > 4000 or UNPRINTABLE.search(value):
        raise ValueError("it is empty, too long, or has characters that cannot be printed")
    return value


def host(value: str) -> str:
    """A host's name or IP address. Raises ValueError."""
    if not is_host(value):
        raise ValueError("it is no host's name or address, such as 127.0.0.1")
    return value


def ray_address(value: str) -> str:
    """local, auto or host:port. Raises ValueError."""
    if value.startswith("ray://"):
        raise ValueError("run mmrl on a node of the cluster, such as by `ray job submit`, and say auto")
    if value not in ("local", "auto") and not (":" in value and _is_host_and_port(value)):
        raise ValueError("it must be local, auto or host:port, with a port of 1 to 65535")
    return value


def storage(value: str) -> str:
    """An absolute path, or a URI of a file system that pyarrow knows. Raises ValueError."""
    if "://" not in value and value.startswith("/"):
        return text(value)
    scheme, place = _scheme_and_place(value)
    if scheme not in FILE_SYSTEMS or place.startswith("/") is not (scheme == "file"):
        raise ValueError(
            "give an absolute path or a URI such as s3://bucket/folder, which every node reaches; "
            f"known are {', '.join(FILE_SYSTEMS)}"
        )
    return value


def data(value: str) -> str:
    """A path, or a URL that fsspec may know. Raises ValueError."""
    if "://" in value and not all(_scheme_and_place(value)):
        raise ValueError("give a path or a URL such as s3://bucket/folder, without spaces")
    return text(value)


def url_prefix(value: str) -> str:
    """https://HOST/FOLDER/. Raises ValueError."""
    scheme, place = _scheme_and_place(value)
    where, slash, _ = place.partition("/")
    plain = slash and place.endswith("/") and not set(place) & set("@?#\\")
    if scheme not in ("http", "https") or not plain or not _is_host_and_port(where):
        raise ValueError("it is no http(s) address that ends with a slash, as https://HOST/FOLDER/")
    return value


def tracking_uri(value: str) -> str:
    """MLflow's store: a database or a server. Raises ValueError; what a password may be is left to its driver."""
    scheme, _, place = value.partition("://")
    kind = scheme.partition("+")[0]
    if kind not in STORES or UNPRINTABLE.search(value):
        raise ValueError("give sqlite:///FILE, postgresql://USER@HOST/NAME or http(s)://HOST:PORT")
    if kind == "sqlite":
        if not re.fullmatch(r"/[^?#]*[^/?#\s][^?#]*(\?.*)?", place):
            raise ValueError("name the database's file, as sqlite:///mlflow.db")
        return value
    hosts = re.split(r"[/?#]", place.rpartition("@")[2])[0]
    if not (hosts or kind == "postgresql") or not all(map(_is_host_and_port, filter(None, hosts.split(",")))):
        raise ValueError("its host or port is impossible; a port is 1 to 65535, and a password's @ : / are encoded")
    return value


def _scheme_and_place(value: str) -> tuple[str, str]:
    """What stands before and after ://; "" for both where either is missing or there are spaces."""
    match = re.fullmatch(r"([a-z][a-z0-9+.:-]*)://(\S+)", value)
    return (match[1], match[2]) if match and not UNPRINTABLE.search(value) else ("", "")


def _is_host_and_port(value: str) -> bool:
    """Whether it is HOST or HOST:PORT; an IPv6 address is in brackets."""
    try:
        parts = urlsplit(f"//{value}")
        known, port = parts.hostname, parts.port
    except ValueError:
        return False
    written = f"[{known}]" if ":" in (known or "") else known or ""
    return port != 0 and is_host(known or "") and value.lower() in (written, f"{written}:{port}")


def is_host(value: str) -> bool:
    """Whether it can be a host's name or IP address; an IPv6 one without brackets."""
    try:
        ipaddress.ip_address(value)
        return True
    except ValueError:
        name = re.fullmatch(r"\w([\w.-]*[\w.])?", value) and len(value) <= 253
        return bool(name) and not re.fullmatch(r"[\d.]+", value)
