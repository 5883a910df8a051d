"""A judge that says what a test tells it to, over HTTP, and what is asked of it."""

import asyncio
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lockstep.rollout.judge import Judge
from lockstep.rollout.reward import Ending, score
from lockstep.types import Message, Task


class Server(ThreadingHTTPServer):
    """Answers with what `script` says, one item a request, the last for ever: a text is a verdict, a number a status, a
    (status, headers, body) is sent as it is, 'hang' waits for `release`."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.lock = list(script), [], threading.Lock()
        self.release, self.arrived, self.now, self.most = threading.Event(), threading.Semaphore(0), 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            answer = server.script.pop(0) if len(server.script) > 1 else server.script[0]
            answer = answer if body["model"] == "m" else '{"score": 1}'
            server.now += body["model"] == "m"
            server.most = max(server.most, server.now)
        server.arrived.release()
        if answer == "hang":
            server.release.wait(20)
            answer = '{"score": 1}'
        with server.lock:
            server.now -= body["model"] == "m"
        if isinstance(answer, str):
            answer = (200, {}, json.dumps({"choices": [{"message": {"content": answer}}]}))
        status, headers, text = (answer, {}, "{}") if isinstance(answer, int) else answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


def made(server, **options):
    return Judge(**{"url": server.url, "model": "m", "rubric": "Is `answer` right?", "timeout_s": 20, **options})


def ending(answer="4", task="2 + 2?"):
    opening = Message(role="user", content=task)
    return Ending(task=Task(id="t", messages=(opening,)), answer=answer, messages=(opening,))


def judged(judge, *endings, **options):
    """The rewards, asked for at once, in an event loop of their own."""
    part = judge.reward(**options)

    async def run():
        return await asyncio.gather(*(score(one, (part,)) for one in endings))

    return [found.parts[part.name] for found in asyncio.run(run())]
