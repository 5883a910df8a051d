import threading

import pytest

from lockstep.rollout import judge_http
from tests.rollout.judge_server import Server


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(judge_http, "FIRST_WAIT_S", 0.01)
    servers = []

    def start(*script):
        servers.append(Server(script))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.release.set()
        server.shutdown()
        server.server_close()
