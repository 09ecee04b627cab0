"""One prompt over each pair of nodes, on fake engines that check every field of the handover."""

from __future__ import annotations

from spillway.core.types import Role
from spillway.fakeengine.engine import EngineSettings, start_engine
from spillway.router.dial import dial
from spillway.router.pairs import try_every_pair
from spillway.router.settings import RouterSettings
from spillway.wire.config import Node

SETTINGS = RouterSettings()


async def test_kv_moves_over_each_pair() -> None:
    roles = (Role.PREFILL, Role.PREFILL, Role.DECODE, Role.DECODE)
    engines = [await start_engine(EngineSettings(role=role, stock=True)) for role in roles]
    try:
        answers = await dial([Node(one.backend.spec, one.url) for one in engines], SETTINGS)
        assert await try_every_pair(answers, SETTINGS) == []
        prompts = [one.backend.metrics.prompt_tokens for one in engines[:2]]
        assert prompts == [80, 80]
        assert [one.backend.metrics.output_tokens for one in engines[2:]] == [2, 2]
        assert not any(one.backend.metrics.dropped for one in engines)
    finally:
        for engine in engines:
            await engine.close()


async def test_a_pair_that_cannot_is_named(bench) -> None:
    prefill, decode = await bench.node("p0"), await bench.node("d0")
    answers = await dial([Node(one.spec, one.url) for one in (prefill, decode)], SETTINGS)

    async def refuse(node, got) -> None:
        got.writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 4\r\n\r\nboom")

    decode.on_post = refuse
    (finding,) = await try_every_pair(answers, SETTINGS)
    assert finding.node_id == "d0"
    assert "p0 to d0: d0 answers 500: boom" in finding.text
    await prefill.stop()
    (finding,) = await try_every_pair(answers, SETTINGS)
    assert "p0 answers connection_refused" in finding.text
