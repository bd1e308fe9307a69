"""
Utilization of a teacher: the mean number of pending requests as a fraction of `concurrency`, with a local server that
responds to each after 200 ms, and with every response written to disk before it is used.

```bash
make bench
```
"""

import asyncio
import json
import multiprocessing
import os
import tempfile
import time

from rlmec_trl.generation.server import ServerConfig
from rlmec_trl.teachers.anthropic_teacher import AnthropicTeacher
from rlmec_trl.teachers.api.config import TeacherConfig
from rlmec_trl.teachers.api.journal import Journal
from rlmec_trl.teachers.journaled_editor import JournaledEditor
from rlmec_trl.teachers.server_teacher import ServerTeacher


SECONDS_PER_ANSWER = 0.2
EDIT = (0, "2 + 2 = 4\nThe answer is 4")
TEXT = json.dumps({"error_step": EDIT[0], "rewrite": EDIT[1]})
MESSAGE = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "teacher",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 400, "output_tokens": 60},
}
COMPLETION = {
    "id": "cmpl",
    "object": "chat.completion",
    "created": 0,
    "model": "teacher",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
    "usage": {"prompt_tokens": 400, "completion_tokens": 60, "total_tokens": 460},
}


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A minimal HTTP connection: read a request, wait, send the response, repeat."""
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            await reader.readexactly(length)
            await asyncio.sleep(SECONDS_PER_ANSWER)
            body = json.dumps(COMPLETION if "/chat/completions" in head else MESSAGE).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


def serve(pipe) -> None:
    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


def share_of_limit(make_editor, concurrency: int, num_questions: int) -> float:
    attempts = [f"2 + 2 = {number}\nThe answer is {number}" for number in range(10, 10 + num_questions)]
    with tempfile.TemporaryDirectory() as directory, Journal(directory) as journal:
        editor = make_editor(journal)
        start = time.perf_counter()
        edits = editor(["How much is 2 + 2?"] * num_questions, ["2 + 2 = 4"] * num_questions, attempts)
        seconds = time.perf_counter() - start
    assert edits == [EDIT] * num_questions, "a request was lost"
    return num_questions * SECONDS_PER_ANSWER / seconds / concurrency


def main() -> None:
    os.environ["ANTHROPIC_API_KEY"] = "not-a-key"
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    address = f"http://127.0.0.1:{here.recv()}"
    config = TeacherConfig()
    for concurrency in (16, 32, 64):
        for title, teacher, base_url in (
            ("Anthropic, single messages", AnthropicTeacher, address),
            ("OpenAI-compatible server", ServerTeacher, f"{address}/v1"),
        ):
            server_config = ServerConfig(base_url=base_url, concurrency=concurrency)

            def make_editor(journal: Journal, teacher=teacher, settings=server_config):
                return JournaledEditor(teacher("teacher", journal, config, settings))

            share_of_limit(make_editor, 1, num_questions=1)  # the SDK is imported on first use
            share = share_of_limit(make_editor, concurrency, num_questions=50 * concurrency)
            print(f"{title}, concurrency {concurrency}: {share:.2f} of it in use on average")
    server.terminate()


if __name__ == "__main__":
    main()
