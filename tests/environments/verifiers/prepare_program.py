"""Makes what verifiers' null harness runs: a script's environment, which uv resolves from the package index, once.

Run it before the tests, so that they themselves need no network: python prepare_program.py
"""

import asyncio

from verifiers.v1.harnesses.utils.launch import CHAT_PROGRAM_SOURCE
from verifiers.v1.runtimes import SubprocessConfig, provision_runtime


async def main() -> None:
    async with provision_runtime(SubprocessConfig()) as runtime:
        await runtime.prepare_uv_script(CHAT_PROGRAM_SOURCE)


if __name__ == "__main__":
    asyncio.run(main())
