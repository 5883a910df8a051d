"""verifiers' own episodes of a taskset (0.4), with a scripted model behind verifiers' own client, over HTTP."""

import asyncio
import json
from contextlib import asynccontextmanager


def sse(events):
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events) + b"data: [DONE]\n\n"


@asynccontextmanager
async def model_server(actions, requests):
    """A model that says the actions (Says) one after another, in OpenAI's chat format; yields its URL. requests: the
    bodies that it was sent."""
    from aiohttp import web

    async def complete(request):
        body = await request.json()
        number = len(requests)
        requests.append(body)
        action = actions[number]
        message = action.openai(number)
        finish = "tool_calls" if action.calls else "stop"
        head = {"id": "x", "created": 0, "model": "m"}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": finish, "message": message}
            return web.json_response({**head, "object": "chat.completion", "choices": [choice]})
        calls = [{**call, "index": i} for i, call in enumerate(message.get("tool_calls", ()))]
        choice = {"index": 0, "finish_reason": finish, "delta": message | ({"tool_calls": calls} if calls else {})}
        chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
        return web.Response(body=sse([chunk]), content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


def native_episode(config, number, actions):
    """The episode of task `number` under an environment's config (a dict), and the requests that its model was sent."""
    from verifiers.v1.clients import EvalClientConfig, ModelContext
    from verifiers.v1.utils.loaders import load_environment, resolve_env_config

    async def run():
        requests = []
        environment = load_environment(resolve_env_config(config))
        task = next(task for task in environment.taskset if task.data.idx == number)
        async with model_server(actions, requests) as url, environment.serving():
            client = EvalClientConfig(base_url=url, api_key_var="NO_SUCH_KEY")
            episode = await environment.run_episode(task, ModelContext(model="m", client=client))
        return episode, requests

    return asyncio.run(run())
