"""What the device does in the test: runs under MicroPython. ``bridge`` is the test's: a way to TCP."""

import asyncio
import binascii
import json

import bridge
import nemo_device


class Reader:
    """As asyncio's."""

    def __init__(self, connection):
        self._connection, self._held = connection, b""

    async def readexactly(self, count):
        while len(self._held) < count:
            part = binascii.a2b_base64((await self._connection.read()).encode())
            if not part:
                raise EOFError("the connection has ended")
            self._held += part
        found, self._held = self._held[:count], self._held[count:]
        return found


class Writer:
    """As asyncio's."""

    def __init__(self, connection):
        self._connection = connection

    def write(self, data):
        self._connection.write(binascii.b2a_base64(data).decode().strip())

    async def drain(self):
        pass

    def close(self):
        self._connection.close()


async def connect(host, port):
    connection = await bridge.connect(host, port)
    if connection is None:
        raise OSError("nobody is there")
    return Reader(connection), Writer(connection)


with open("/nemo.json") as file:
    device = nemo_device.Device(json.load(file), "", connect=connect, trial=1, firmware="mp")
device.state["led"] = False
device.measure("temperature", 21.5)


@device.action("blink")
async def blink(arguments):
    await asyncio.sleep(0)
    return {"blinked": arguments["times"]}


# A task of its own: what runs at the top cannot be interrupted, and so not wait for a while.
await asyncio.create_task(device.run())  # noqa: F704 - it is run in a loop
