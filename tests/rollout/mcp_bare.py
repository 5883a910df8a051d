"""A small server that speaks the protocol as of 2025 in bare JSON lines: python mcp_bare.py [FILE]. It starts at once.

FILE receives this process's id and that of a child which ignores hang-ups and closed pipes; and, when the input ends,
"ended". Environment: MORE_TOOLS names further tools; with STUBBORN the end of the input does not end the server.
"""

import json
import os
import signal
import subprocess
import sys

TOOLS = ("count", "hang", "crash", "a.dd", "add", "echo", "where", *os.environ.get("MORE_TOOLS", "").split())
count = 0


def call(name, arguments):
    global count
    if name == "crash":
        print("first\nit went wrong here", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "count":
        count += 1
        return f"{count} in {os.getpid()}"
    if name == "where":
        return os.getcwd()
    if name == "half":
        return "half a pair: \ud800"
    return json.dumps(arguments)


def result(method, params):
    if method == "initialize":
        version = params["protocolVersion"]
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": {"name": "b", "version": "1"}}
    if method == "tools/list":  # a page for each tool
        page = int(params.get("cursor", 0))
        more = {"nextCursor": str(page + 1)} if page + 1 < len(TOOLS) else {}
        return {"tools": [{"name": TOOLS[page], "inputSchema": {"type": "object"}}], **more}
    return {"content": [{"type": "text", "text": call(params["name"], params["arguments"])}]}


def main():
    if len(sys.argv) > 1:
        ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.pause()"
        child = subprocess.Popen([sys.executable, "-c", ignoring], start_new_session=True, stdin=-3, stdout=2)
        with open(sys.argv[1], "w") as file:
            file.write(f"{os.getpid()} {child.pid} ")
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked or asked.get("params", {}).get("name") == "hang":
            continue
        answer = {"jsonrpc": "2.0", "id": asked["id"]}
        if asked["method"] in ("initialize", "tools/list", "tools/call"):
            answer["result"] = result(asked["method"], asked.get("params", {}))
        else:
            answer["error"] = {"code": -32601, "message": "unknown method"}
        print("not for the client: noise on the output" if asked["id"] == 3 else "", flush=True)
        print(json.dumps(answer), flush=True)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "a") as file:
            file.write("ended")
    if "STUBBORN" in os.environ:
        signal.pause()


main()
