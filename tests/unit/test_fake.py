"""The fake engine's marks, as far as other tests do not use them."""

from __future__ import annotations

import asyncio

from house import House, as_data, audio, run


def test_a_slow_input_keeps_its_lane() -> None:
    """What comes meanwhile queues up behind it, so that a client can see what waiting is like."""

    async def test() -> None:
        async with House() as house:
            engine = await house.loaded()
            engine.lanes = 1
            client = house.client()
            slow = client.send("transcribe", audio=as_data(audio(1.0, "SLOW 0.02 ")))
            while not engine.in_flight():
                await asyncio.sleep(0)
            quick = client.transcribe()
            await client.result(quick)
            assert [reply["id"] for reply in client.replies if "id" in reply] == [slow, quick]

    run(test)
