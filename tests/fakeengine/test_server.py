"""One engine over a real socket: answers, streams, pages, and bad input."""

import asyncio
import itertools
import json

import aiohttp
import pytest

from spillway.core.types import Role
from spillway.wire.enginepages import read_server_info
from spillway.wire.release import RELEASE_PATH
from spillway.wire.report import decode

PROMPT = [11, 22, 33, 44]


def text_of(chunks: list[dict]) -> str:
    return "".join(c["choices"][0].get("text", "") for c in chunks if c["choices"])


async def test_a_completion_is_the_prompts_own_text(start, client, expected):
    engine = await start()
    status, answer = await client.post(
        engine, {"model": "fake-llama", "prompt": PROMPT, "max_tokens": 5}, x_request_id="mine"
    )
    assert status == 200
    assert answer["id"] == "cmpl-mine"
    assert answer["choices"][0]["text"] == expected(PROMPT, 5)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["kv_transfer_params"] is None


async def test_a_stream_has_one_frame_per_token_then_usage(start, client, expected):
    engine = await start()
    chunks = await client.stream(
        engine, {"prompt": "hi", "max_tokens": 7, "stream_options": {"include_usage": True}}
    )
    assert len(chunks) == 8
    assert text_of(chunks) == expected("hi", 7)
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 6 + ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == 7


async def test_a_stream_without_the_option_has_no_usage(start, client):
    engine = await start()
    chunks = await client.stream(engine, {"prompt": "hi", "max_tokens": 1})
    assert len(chunks) == 1
    assert "usage" not in chunks[0]


async def test_chat_streams_and_not(start, client, expected):
    engine = await start()
    body = {"messages": [{"role": "user", "content": "hello"}], "max_completion_tokens": 3}
    path = "/v1/chat/completions"
    _, answer = await client.post(engine, body, path=path)
    assert answer["choices"][0]["message"]["content"] == expected("hello", 3)
    chunks = await client.stream(engine, body, path=path)
    deltas = [c["choices"][0]["delta"] for c in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == expected("hello", 3)


async def test_fifty_streams_at_once_are_each_complete_and_in_order(start, client, expected):
    engine = await start()
    prompts = [[number, number + 1, number * 7] for number in range(50)]
    streams = await asyncio.gather(
        *(client.stream(engine, {"prompt": prompt, "max_tokens": 20}) for prompt in prompts)
    )
    for prompt, chunks in zip(prompts, streams, strict=True):
        assert text_of(chunks) == expected(prompt, 20)
    assert engine.backend.metrics.output_tokens == 50 * 20
    assert engine.backend.node.kv.used_tokens == 0


async def test_a_client_that_leaves_mid_stream_frees_its_kv(start, client, eventually):
    engine = await start()
    body = {"prompt": PROMPT, "max_tokens": 50_000, "stream": True}
    answer = await client.session.post(engine.url + "/v1/completions", json=body)
    await answer.content.readline()
    assert engine.backend.node.kv.used_tokens > 0
    answer.close()
    await eventually(lambda: engine.backend.node.kv.used_tokens == 0)
    assert engine.backend.pace.flights == 0
    await eventually(lambda: engine.backend.metrics.finished["abort"] == 1)


async def test_a_client_that_leaves_while_its_prompt_runs_frees_its_kv(start, client, eventually):
    engine = await start("prefill", step_tokens_max=16)
    asking = asyncio.ensure_future(client.prefill(engine, [5] * 20_000))
    await eventually(lambda: engine.backend.pace.state().backlog_tokens > 0)
    asking.cancel()
    await eventually(lambda: engine.backend.pace.state().backlog_tokens == 0)
    await eventually(lambda: engine.backend.node.kv.used_tokens == 0)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"max_tokens": 3}', 400),
        (b'{"prompt": "x", "max_tokens": "3"}', 400),
        (b'{"prompt": "x", "model": "other"}', 404),
        (b'{"prompt": "x", "kv_transfer_params": {"do_remote_decode": true}}', 400),
    ],
)
async def test_bad_input_is_answered_with_an_openai_error(start, client, body, status):
    engine = await start()
    got, answer = await client.post(engine, body)
    assert got == status
    assert answer["error"]["code"] == status
    assert answer["error"]["message"]
    assert engine.backend.metrics.dropped["bad_request"] == 1
    assert engine.backend.pace.flights == 0


async def test_a_bad_header_is_named(start, client):
    engine = await start()
    got, answer = await client.post(engine, {"prompt": "x"}, x_slo_tbt_ms="soon")
    assert got == 400
    assert "x-slo-tbt-ms" in answer["error"]["message"]


async def test_a_body_over_the_limit_is_413(start, client):
    engine = await start(body_bytes_max=1000)
    got, answer = await client.post(engine, {"prompt": "x" * 2000})
    assert got == 413
    assert "1000 bytes" in answer["error"]["message"]


async def test_a_full_engine_answers_503_and_counts(start, client):
    engine = await start(requests_max=1)
    long = asyncio.ensure_future(client.post(engine, {"prompt": "x", "max_tokens": 50_000}))
    while not engine.backend.pace.flights:
        await asyncio.sleep(0.001)
    got, answer = await client.post(engine, {"prompt": "x", "max_tokens": 1})
    assert got == 503
    assert "retry" in answer["error"]["message"]
    long.cancel()
    assert engine.backend.metrics.dropped["engine_full"] == 1


async def test_pages(start, client):
    engine = await start(model="m1")
    assert await client.get(engine, "/health") == (200, "")
    assert "fake" in json.loads((await client.get(engine, "/version"))[1])["version"]
    (model,) = json.loads((await client.get(engine, "/v1/models"))[1])["data"]
    assert model["id"] == "m1"
    assert model["max_model_len"] == 99_999  # what fits into the node's KV room


async def test_metrics_count_what_was_served(start, client):
    engine = await start()
    await client.stream(engine, {"prompt": PROMPT, "max_tokens": 6})
    _, page = await client.get(engine, "/metrics")
    label = '{model_name="fake-llama",engine="0"}'
    assert f"vllm:prompt_tokens_total{label} 4\n" in page
    assert f"vllm:generation_tokens_total{label} 6\n" in page
    assert f"vllm:time_to_first_token_seconds_count{label} 1\n" in page
    assert f"vllm:inter_token_latency_seconds_count{label} 5\n" in page


async def test_reports_tell_of_dispatches_and_rise(start, client):
    engine = await start(node_id="d7")
    dispatched = {"x_spillway_dispatch": "r1:41"}
    async with client.session.get(engine.url + "/spillway/reports?router=r1") as reports:
        assert reports.status == 200
        first = decode(await reports.content.readline())
        assert (first.node_id, first.decode_seqs, first.dispatch_seen) == ("d7", 0, {})
        body = {"prompt": PROMPT, "max_tokens": 50_000}
        streaming = asyncio.ensure_future(
            client.stream(engine, body, x_slo_tbt_ms="45", **dispatched)
        )
        heard = [first]
        while not heard[-1].decode_seqs:
            heard.append(decode(await reports.content.readline()))
        assert heard[-1].dispatch_seen == {"r1": 41}
        assert heard[-1].tbt_s_min == 0.045
        assert heard[-1].kv_used_tokens >= len(PROMPT)
        streaming.cancel()
        while heard[-1].decode_seqs:
            heard.append(decode(await reports.content.readline()))
        seqs = [report.seq for report in heard]
        assert all(earlier < later for earlier, later in itertools.pairwise(seqs))
        assert heard[-1].kv_used_tokens == 0
        assert heard[-1].tbt_s_min is None


async def test_reports_hold_every_step_once(start, client):
    engine = await start()
    async with client.session.get(engine.url + "/spillway/reports?router=r1") as reports:
        await client.stream(engine, {"prompt": PROMPT, "max_tokens": 30})
        heard = []
        while len(heard) < 30:
            report = decode(await reports.content.readline())
            heard += report.recent_steps
            if heard:
                assert report.last_step_actual_s == heard[-1].actual_s > 0
                assert report.last_step_predicted_s == heard[-1].predicted_s > 0
    assert [one.step for one in heard] == list(range(1, 31))
    assert [one.prefill_tokens for one in heard] == [len(PROMPT)] + [0] * 29


async def test_a_report_never_claims_a_dispatch_it_does_not_include(start, client):
    engine = await start("prefill", step_tokens_max=16)
    async with client.session.get(engine.url + "/spillway/reports?router=r1") as reports:
        asking = asyncio.ensure_future(
            client.prefill(engine, [5] * 20_000, x_spillway_dispatch="r1:3")
        )
        report = decode(await reports.content.readline())
        while not report.dispatch_seen:
            report = decode(await reports.content.readline())
        assert report.backlog_prompts == 1
        asking.cancel()


async def test_a_stock_engine_reports_nothing_and_sizes_no_chunks(start, client):
    engine = await start(stock=True)
    status, _ = await client.get(engine, "/spillway/reports")
    assert status == 404
    async with client.session.post(engine.url + RELEASE_PATH) as answer:
        assert answer.status == 404
    assert engine.backend.spec.chunk_mode == "static"
    status, _ = await client.post(engine, {"prompt": "x", "max_tokens": 2})
    assert status == 200


async def test_closing_ends_open_streams_with_an_error_frame(start, client):
    engine = await start()
    body = {"prompt": PROMPT, "max_tokens": 50_000, "stream": True}
    async with client.session.post(engine.url + "/v1/completions", json=body) as answer:
        await answer.content.readline()
        await engine.close()
        last = [line for line in (await answer.read()).split(b"\n\n") if line][-1]
    assert json.loads(last[6:])["error"]["code"] == 500


async def test_a_killed_engine_breaks_its_streams(start, client):
    engine = await start()
    body = {"prompt": PROMPT, "max_tokens": 50_000, "stream": True}
    async with client.session.post(engine.url + "/v1/completions", json=body) as answer:
        await answer.content.readline()
        await engine.kill()
        with pytest.raises(aiohttp.ClientError):
            await answer.read()
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get(engine, "/health")


@pytest.mark.parametrize(("stock", "has_plugin"), [(True, False), (False, True)])
async def test_development_pages_tell_the_settings(start, client, stock, has_plugin):
    hidden = await start(stock=stock)
    async with client.session.get(hidden.url + "/server_info") as answer:
        assert answer.status == 404
    engine = await start(stock=stock, dev_mode=True, chunk_tokens_max=320, seqs_max=100)
    async with client.session.get(engine.url + "/server_info?config_format=json") as answer:
        info = read_server_info(await answer.read())
    assert info.scheduler_config.chunk_tokens_max == 320
    assert info.scheduler_config.max_num_seqs == 100
    assert info.scheduler_config.has_plugin is has_plugin
    assert info.kv_transfer_config.role is Role.DECODE
