"""A connection to a Milvus server: milvus://HOST:PORT/NAME[?consistency=Bounded], milvus+tls://… over TLS.

MILVUS_TOKEN=USER:PASSWORD are credentials; MILVUS_CA, MILVUS_CERT and MILVUS_KEY files of TLS.
"""

import logging
import os
import re
import time
from typing import Any

import grpc
from pymilvus import MilvusClient, MilvusException

from utils.errors import UserError, first_line

OLDEST = (2, 3)  # version with counts, upserts and iterators
CONNECT = 10  # seconds until a server that does not answer is given up
TIMEOUT = 20  # seconds a call; pymilvus tries again so long where the connection is lost
PATIENCE, PAUSE = 60, 0.2  # seconds in which a call is tried again where the server is not ready, and between
LEVELS = "Strong|Session|Bounded|Eventually"
FORM = f"milvus://HOST:PORT/NAME[?consistency={LEVELS}]"
HOST = r"([\w.-]+|\[[\w:.]+\])(?::(\d{1,5}))?"
ADDRESS = re.compile(rf"milvus(\+tls)?://{HOST}/([A-Za-z_]\w{{0,200}})/?(?:\?consistency=({LEVELS}))?", re.ASCII)
TLS = {"ca_pem_path": "MILVUS_CA", "client_pem_path": "MILVUS_CERT", "client_key_path": "MILVUS_KEY"}
NOT_ALLOWED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
NOT_LOADED = {101, 103}
# What passes by itself: the server starts, or a part of it is lost, moves or is loading.
PASSING = {1, 2, 8, 106, 400, 401, 500, 501, 503, 901, 902, 903, 904, *NOT_LOADED}
PASSING |= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it says, its exceptions say too


class Server:
    """The connection that an address names, with its ``name`` and ``level``. Every call may raise UserError."""

    def __init__(self, address: str):
        self.address, self.patience, found = address, 0, ADDRESS.fullmatch(address)
        if "@" in address:
            raise UserError("--index: credentials don't belong in an address; set MILVUS_TOKEN=USER:PASSWORD")
        if not found or int(found[3] or 0) > 65535:
            raise UserError(f"{address}: no index's address; write {FORM}, NAME of letters, digits and _")
        secure, host, port, self.name, level = found.groups()
        self.level = level or "Strong"
        tls = {option: os.environ[name] for option, name in TLS.items() if secure and name in os.environ}
        if "ca_pem_path" in tls and len(tls) < 3:
            tls = {"server_pem_path": tls["ca_pem_path"]}  # its name where the client shows no certificate
        how = {"token": os.environ.get("MILVUS_TOKEN", ""), "secure": bool(secure), "dedicated": True, **tls}
        uri = f"{'https' if secure else 'http'}://{host}:{port or 19530}"
        self.client = self.ask(MilvusClient, uri, timeout=CONNECT, **how)
        self.patience = PATIENCE
        self.version = self.ask("get_server_version")
        if tuple(map(int, re.findall(r"\d+", self.version)[:2])) < OLDEST:
            raise UserError(f"{address}: Milvus {self.version}; version {OLDEST[0]}.{OLDEST[1]} or newer is needed")

    def ask(self, call: Any, *args: Any, timeout: float = TIMEOUT, **kwargs: Any) -> Any:
        """A call, of the client where it is a name; for ``patience`` seconds again where it may succeed later."""
        call = getattr(self.client, call) if isinstance(call, str) else call
        end = time.monotonic() + self.patience
        while True:
            try:
                return call(*args, timeout=timeout, **kwargs)
            except (MilvusException, grpc.RpcError) as error:
                code = error.code() if callable(error.code) else error.code  # gRPC's own, else Milvus'
                if time.monotonic() >= end or not (code in PASSING or getattr(error, "retriable", False)):
                    raise self._refusal(code, getattr(error, "message", None) or error.details()) from None
            time.sleep(PAUSE)

    def _refusal(self, code: object, text: str) -> UserError:
        what = "Milvus refuses"  # words that are looked for have a space: no index's name has
        if code in NOT_ALLOWED or "auth check failure" in text:
            what = "credentials are needed or wrong: set MILVUS_TOKEN=USER:PASSWORD"
        elif "quota exceeded" in text or "no space" in text:
            what = "no space is left there; what was added before is kept"
        elif code in NOT_LOADED:
            what = "is not loaded; wait while `search add --approximate` is at work there; if it was killed, repeat it"
        elif code in PASSING:  # pymilvus says the same of wrong credentials
            what = "no Milvus server answers there; start it, or mend the address or MILVUS_TOKEN=USER:PASSWORD"
        return UserError(f"{self.address}: {what} ({first_line(text)})")
