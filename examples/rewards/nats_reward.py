"""A NATS responder that scores for a run: `python3 nats_reward.py FILE FUNCTION --run NAME [--server URL] [--creds FILE]`.

The run has `rollout.remote_reward: true`. Any number of these may answer, beside `folgore worker --role reward` too: each
request goes to one of them. Needs nats-py (`pip install nats-py`).
"""

import argparse
import asyncio
import json
import os
import socket
import sys

import nats

import folgore_reward

HEARTBEAT_S = 2.0


async def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("file")
    options.add_argument("function")
    options.add_argument("--run", required=True)
    options.add_argument("--server", default="nats://127.0.0.1:4222")
    options.add_argument("--creds", help="credentials file of an identity on the server")
    options.add_argument("--name", default=f"python-{os.getpid()}")
    given = options.parse_args()
    function = folgore_reward.load(given.file, given.function)
    more = {"user_credentials": given.creds} if given.creds else {}

    async def told(error):
        print(f"nats: {error or type(error).__name__}", file=sys.stderr)

    # A server that is being restarted is waited for.
    more |= {"max_reconnect_attempts": -1, "error_cb": told}
    client = await nats.connect(given.server, name=given.name, **more)
    slots = asyncio.Semaphore(4)

    def headers(key):
        return {"Rl-Schema": "1.0", "Rl-Run": given.run, "Rl-Id": key}

    async def answer(message):
        async with slots:
            # A thread, so that heartbeats go on while the function computes.
            reply = await asyncio.to_thread(folgore_reward.score, function, json.loads(message.data))
            key = (message.headers or {}).get("Rl-Id", "")
            await client.publish(message.reply, json.dumps(reply).encode(), headers=headers(key))

    async def on_request(message):
        tasks.add(task := asyncio.create_task(answer(message)))
        task.add_done_callback(tasks.discard)

    tasks = set()
    await client.subscribe(f"rl.v1.{given.run}.req.reward", queue="reward", cb=on_request)
    await client.flush()
    print(f"answering for run {given.run} as {given.name}", flush=True)
    while True:
        # The head counts who is there to score.
        beat = {
            "role": "reward",
            "worker": given.name,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "build": "nats_reward.py",
            "state": "working" if tasks else "idle",
            "slots": 4,
            "active": len(tasks),
            "policy": None,
            "status": None,
        }
        subject = f"rl.v1.{given.run}.hb.reward.{given.name}"
        await client.publish(subject, json.dumps(beat).encode(), headers=headers(given.name))
        await asyncio.sleep(HEARTBEAT_S)


asyncio.run(main())
