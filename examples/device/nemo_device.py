"""A device of NEMO in one file, for MicroPython and CPython: twin, measurements, commands and its application over the air.

    device = Device(json.load(open("nemo.json")))          # what 'nemo device add NAME' printed
    device.state["led"] = False                            # what it reports

    @device.action("blink")
    def blink(arguments):                                  # 'nemo device command NAME blink --wait'
        return {"blinked": arguments["times"]}

    device.changed = lambda delta: led(delta.get("led"))   # what is wanted and not so yet
    asyncio.run(device.run())

It speaks MQTT 3.1.1 by itself, as MicroPython has no packages to lean on. Bounds: RING measurements wait while it is offline
(the oldest go first), ANSWERS answers, PACKET bytes of a packet. An application is Python with 'async def main(device)'. It
is run only if Ed25519 (RFC 8032) says that the hub signed it: an HMAC would need a secret on each device, by which a stolen
one could sign for all the others. A new application is on trial: where it ends with an error, or the device starts TRIES
times before it ran for TRIAL seconds or called device.confirm(), the one before it runs again. What hangs is the watchdog's
(machine.WDT): it is fed as long as the loop turns.
"""

import asyncio
import binascii
import hashlib
import json
import os
import random
import struct
import time

RING, ANSWERS, PACKET, CHUNK = 64, 16, 32768, 2048
TRIES, TRIAL, MOST_APP, PATIENCE = 3, 10, 131072, 20
_ticks = [0, 0]


def seconds():
    """Monotonic; MicroPython's milliseconds begin again every few days."""
    if not hasattr(time, "ticks_ms"):
        return time.monotonic()
    now = time.ticks_ms()
    _ticks[:] = now, _ticks[1] + time.ticks_diff(now, _ticks[0])
    return _ticks[1] / 1000


def merged(target, patch):
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def delta(state, desired):
    """What is wanted and not so yet."""
    left = {}
    for key, wanted in desired.items():
        if wanted is None:
            if key in state:
                left[key] = None
        elif isinstance(wanted, dict) and isinstance(state.get(key), dict):
            below = delta(state[key], wanted)
            if below:
                left[key] = below
        elif key not in state or state[key] != merged(None, wanted) or isinstance(state[key], bool) != isinstance(wanted, bool):
            left[key] = wanted
    return left


P = 2**255 - 19
Q = 2**252 + 27742317777372353535851937790883648493


def sha512(data):
    if hasattr(hashlib, "sha512"):
        return hashlib.sha512(data).digest()
    mask, words, primes, number = 2**64 - 1, [], [], 2
    while len(primes) < 80:
        if all(number % p for p in primes):
            primes.append(number)
        number += 1

    def root(value, power):
        low, high = 0, 1
        while high**power <= value:
            high *= 2
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**power <= value else (low, middle - 1)
        return low

    keys = [root(p << 192, 3) & mask for p in primes]
    state = [root(p << 128, 2) & mask for p in primes[:8]]
    data += b"\x80" + bytes(-(len(data) + 17) % 128) + (8 * len(data)).to_bytes(16, "big")

    def turned(x, n):
        return (x >> n | x << (64 - n)) & mask

    for start in range(0, len(data), 128):
        words = [int.from_bytes(data[i : i + 8], "big") for i in range(start, start + 128, 8)]
        for i in range(16, 80):
            x, y = words[i - 15], words[i - 2]
            small = turned(x, 1) ^ turned(x, 8) ^ x >> 7
            words.append(words[i - 16] + small + words[i - 7] + (turned(y, 19) ^ turned(y, 61) ^ y >> 6) & mask)
        a, b, c, d, e, f, g, h = state
        for i in range(80):
            one = h + (turned(e, 14) ^ turned(e, 18) ^ turned(e, 41)) + (e & f ^ ~e & g) + keys[i] + words[i]
            two = (turned(a, 28) ^ turned(a, 34) ^ turned(a, 39)) + (a & b ^ a & c ^ b & c)
            a, b, c, d, e, f, g, h = (one + two) & mask, a, b, c, (d + one) & mask, e, f, g
        state = [(x + y) & mask for x, y in zip(state, (a, b, c, d, e, f, g, h))]  # noqa: B905 - MicroPython has no strict
    return b"".join(x.to_bytes(8, "big") for x in state)


def _add(one, two, d):
    a, b = (one[1] - one[0]) * (two[1] - two[0]) % P, (one[1] + one[0]) * (two[1] + two[0]) % P
    c, z = 2 * one[3] * two[3] * d % P, 2 * one[2] * two[2] % P
    e, f, g, h = b - a, z - c, z + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(number, point, d):
    result = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = _add(result, point, d)
        point, number = _add(point, point, d), number >> 1
    return result


def _point(raw, d):
    y = int.from_bytes(raw, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    square = (y * y - 1) * pow(d * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - square) % P or (not x and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def signed(key, message, signature):
    """Whether the holder of this public key signed this."""
    d = -121665 * pow(121666, P - 2, P) % P
    base, number = _point((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"), d), int.from_bytes(signature[32:], "little")
    who, start = _point(key, d), _point(signature[:32], d)
    if len(key) != 32 or len(signature) != 64 or who is None or start is None or number >= Q:
        return False
    h = int.from_bytes(sha512(signature[:32] + key + message), "little") % Q
    left, right = _times(number, base, d), _add(start, _times(h, who, d), d)
    return not (left[0] * right[2] - right[0] * left[2]) % P and not (left[1] * right[2] - right[1] * left[2]) % P


def _text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack(">H", len(raw)) + raw


def _packet(kind, body):
    size, left = bytearray(), len(body)
    while True:
        size.append(left & 127 | (128 if left > 127 else 0))
        left >>= 7
        if not left:
            return bytes((kind,)) + bytes(size) + body


async def _received(reader):
    """(first byte, body) of the next packet."""
    kind, size = (await reader.readexactly(1))[0], 0
    for shift in (0, 7, 14, 21):
        byte = (await reader.readexactly(1))[0]
        size |= (byte & 127) << shift
        if byte < 128:
            break
    if size > PACKET:
        raise OSError(f"a packet of {size} bytes")
    return kind, await reader.readexactly(size) if size else b""


def tls(authorities, certificate=None):
    """A TLS context that trusts these certificates (PEM) alone. 'certificate': a file with what it shows itself, and the key."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    parts = [part.split("-----END")[0] for part in authorities.split("-----BEGIN CERTIFICATE-----")[1:]]
    context.load_verify_locations(cadata=b"".join(binascii.a2b_base64(part.replace("\n", "").encode()) for part in parts))
    if certificate:
        context.load_cert_chain(certificate, certificate)
    return context


async def enrol(hub, authorities, token, name, connect=None, certificate=None):
    """Zero touch: what 'nemo device add' would have printed, for who holds a claim's token ('nemo device claim'). With its
    'certificate' (a file) instead, 'token' is NAMESPACE/CLAIM."""
    space, claim = token.split("/") if certificate else token.split("_")[1:3]
    host, _, port = hub.split("://")[1].partition(":")
    path = f"/apis/meta-os.eu/v1alpha1/namespaces/{space}/deviceclaims/{claim}/enrolment"
    body = json.dumps({"spec": {"name": name}}).encode()
    head = f"POST {path} HTTP/1.0\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connect = connect or (lambda host, port: asyncio.open_connection(host, port, ssl=tls(authorities, certificate)))
    reader, writer = await connect(host, int(port or 443))
    try:
        writer.write(head.encode() + body)
        await writer.drain()
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    said = json.loads(body)
    if b" 201 " not in head[:16]:
        raise OSError(said.get("message"))
    return dict(said["status"], name=said["metadata"]["name"], namespace=space)


class Device:
    """'config': namespace, name, username, password, servers, authorities, appKey. 'folder': where applications are kept.
    'connect': (host, port) to a reader and a writer, where asyncio.open_connection is not what is wanted."""

    def __init__(self, config, folder=".", heartbeat=30, firmware="", watchdog=None, connect=None, trial=TRIAL, log=print):
        self.config, self.folder, self.heartbeat, self.firmware = config, folder, heartbeat, firmware
        self.state, self.actions, self.changed, self.log = {}, {}, None, log
        self.online, self.dropped, self._watchdog, self._trial = False, 0, watchdog, trial
        scheme, _, place = config["servers"][0].partition("://")
        host, _, port = place.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        secure = tls(config["authorities"]) if scheme == "mqtts" and connect is None else None
        self._open = connect or (lambda host, port: asyncio.open_connection(host, port, ssl=secure))
        self._topic = f"nemo/{config['namespace']}/{config['name']}/"
        self._news, self._acked, self._part = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._ring, self._answers, self._done, self._doing = [], [], [], []
        self._session, self._epoch, self._sequence, self._version, self._number, self._app = "", 0, 0, 0, 0, {}
        self._dirty, self._failed, self._chunk, self._writer, self._code, self._fetching, self._manifest = (True,) + (None,) * 6
        try:
            with open(folder + "/app.json") as file:
                self._app = json.load(file)
        except (OSError, ValueError):
            pass  # It has none yet.

    def action(self, name):
        """Decorates what does a command: (arguments) to a result; may be a coroutine."""
        return lambda function: self.actions.setdefault(name, function)

    def report(self, **changes):
        """Its state has changed."""
        self.state.update(changes)
        self._dirty = True
        self._news.set()

    def measure(self, name, value):
        """Sends a measurement; it waits while the device is offline."""
        if len(self._ring) >= RING:
            self._ring.pop(0)
            self.dropped += 1
        self._ring.append(("telemetry/" + name, json.dumps(value)))
        self._news.set()

    def confirm(self):
        """The application is in order."""
        if self._app.get("state") == "Trial":
            self._set(state="Running", tries=0, message="")

    async def run(self):
        """For ever."""
        self._boot()
        wait = 1
        while True:
            begun = seconds()
            try:
                await self._connected()
            except Exception as error:
                self.log(f"offline: {type(error).__name__} {error}")
            self.online = False
            wait = 1 if seconds() - begun > 60 else min(60, wait * 2)
            await self._pause(asyncio.Event(), wait * (0.5 + random.random()))

    async def _pause(self, event, wait):
        """Until an event or for so long; the watchdog is fed."""
        end = seconds() + wait
        while not event.is_set() and seconds() < end:
            if self._watchdog:
                self._watchdog.feed()
            try:
                await asyncio.wait_for(event.wait(), min(1, max(0.01, end - seconds())))
            except asyncio.TimeoutError:
                pass
        return event.is_set()

    async def _connected(self):
        reader, self._writer = await asyncio.wait_for(self._open(self._host, self._port), PATIENCE)
        reading = None
        try:
            self._session, self._failed, self._dirty, self._epoch, self._again = f"{random.getrandbits(30):x}", None, True, 0, 1
            will = json.dumps({"online": False, "session": self._session})
            body = _text("MQTT") + b"\x04\xc6" + struct.pack(">H", self.heartbeat * 2)
            body += _text(self.config["name"]) + _text(self._topic + "status") + _text(will)
            await self._send(0x10, body + _text(self.config["username"]) + _text(self.config["password"]))
            kind, answer = await asyncio.wait_for(_received(reader), PATIENCE)
            if kind != 0x20 or answer[1]:
                raise OSError(f"the server refuses it: {binascii.hexlify(answer).decode()}")
            words = ("twin/desired", "command/+", "app/desired", "app/chunk")
            await self._send(0x82, b"\x00\x01" + b"".join(_text(self._topic + word) + b"\x00" for word in words))
            reading = asyncio.create_task(self._read(reader))
            await self._birth()
            self.online = True
            while True:
                await self._next()
        finally:
            if reading is not None:
                reading.cancel()
            self._writer.close()

    async def _birth(self):
        said = {"online": True, "session": self._session, "heartbeat": self.heartbeat, "firmware": self.firmware}
        await self._publish("status", json.dumps(said))

    async def _next(self):
        """Sends what is most urgent, or waits for something to send."""
        if self._failed is not None:
            raise self._failed
        if self._answers:
            item = self._answers[0]
            await self._publish(*item)
            self._answers = [each for each in self._answers if each is not item]
        elif self._dirty and self._epoch:
            self._dirty, self._sequence = False, self._sequence + 1
            said = {"epoch": self._epoch, "sequence": self._sequence, "version": self._version, "reported": self.state}
            said["app"] = {k: v for k, v in self._app.items() if k in ("sha256", "version", "state", "message", "tried")}
            await self._publish("twin/reported", json.dumps(said))
        elif self._ring:
            item = self._ring[0]
            await self._publish(*item)
            if self._ring and self._ring[0] is item:
                self._ring.pop(0)
        else:
            self._news.clear()
            self._again = self.heartbeat if self._epoch else min(self.heartbeat, self._again * 2)  # Until it was heard.
            if not await self._pause(self._news, self._again):
                await self._birth()

    async def _send(self, kind, body):
        self._writer.write(_packet(kind, body))
        await self._writer.drain()

    async def _publish(self, word, text):
        """At least once: returns when the server has it."""
        self._number = self._number % 65535 + 1
        self._acked.clear()
        await self._send(0x32, _text(self._topic + word) + struct.pack(">H", self._number) + text.encode())
        if not await self._pause(self._acked, PATIENCE) or self._failed is not None:
            raise self._failed or OSError("the server does not answer")

    async def _read(self, reader):
        try:
            while True:
                kind, body = await _received(reader)
                if kind == 0x40 and struct.unpack(">H", body[:2])[0] == self._number:
                    self._acked.set()
                elif kind & 0xF0 == 0x30:
                    size = struct.unpack(">H", body[:2])[0]
                    topic, body = body[2 : 2 + size].decode(), body[2 + size + (2 if kind & 6 else 0) :]
                    self._take(topic[len(self._topic) :], json.loads(body))
        except Exception as error:
            self._failed = error
            self._news.set()
            self._acked.set()

    def _take(self, word, said):
        if word == "twin/desired" and said.get("session") == self._session:
            left = delta(self.state, said["desired"]) if "desired" in said else said["delta"]
            self._epoch, self._dirty = said["epoch"], True
            try:
                if left and self.changed is not None:
                    self.changed(left)
                self.state, self._version = merged(self.state, left), said["version"]
            except Exception as error:
                self.log(f"not changed: {error}")
        elif word.startswith("command/"):
            self._doing = [task for task in self._doing if not task.done()] + [asyncio.create_task(self._do(word[8:], said))]
        elif word == "app/desired":
            self._manifest = said
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._update())
        elif word == "app/chunk":
            self._chunk = said
            self._part.set()
        self._news.set()

    async def _do(self, number, said):
        """Does a command once, however often it is told."""
        answer = next((found for known, found in self._done if known == number), None)
        if answer is None:
            try:
                if said["action"] not in self.actions:
                    raise ValueError(f"it has no action {said['action']}; it has {', '.join(sorted(self.actions)) or 'none'}")
                result = self.actions[said["action"]](said.get("arguments"))
                answer = json.dumps({"ok": True, "result": await result if hasattr(result, "send") else result})
            except Exception as error:
                answer = json.dumps({"ok": False, "result": f"{type(error).__name__}: {error}"})
            self._done = self._done[-ANSWERS:] + [(number, answer)]
        self._answers = self._answers[-ANSWERS:] + [("result/" + number, answer)]
        self._news.set()

    def _set(self, **changes):
        """Written beside and renamed, so that a loss of power leaves the old or the new."""
        self._app.update(changes)
        with open(self.folder + "/app.new", "w") as file:
            json.dump(self._app, file)
        os.rename(self.folder + "/app.new", self.folder + "/app.json")
        self._dirty = True
        self._news.set()

    async def _update(self):
        """Has what was told last, whatever is told meanwhile."""
        try:
            while self._manifest["sha256"] not in (self._app.get("sha256"), self._app.get("tried")):
                await self._fetch(self._manifest)
        finally:
            self._fetching = None

    async def _fetch(self, manifest):
        sha, size = manifest["sha256"], manifest.get("size")
        if not sha:
            self._set(sha256="", version="", state="None", message="", tried="", before=None)
            self._start()
            return
        text = f"nemo-app\n{self.config['namespace']}\n{sha}\n{size}\n{manifest['version']}"
        key, signature = (binascii.unhexlify(each.encode()) for each in (self.config.get("appKey") or "", manifest["signature"]))
        if not 0 < size <= MOST_APP or not signed(key, text.encode(), signature):
            self._set(tried=sha, state="Refused", message="the hub did not sign it")
            return
        code = b""
        while len(code) < size:
            if self._manifest is not manifest:
                return
            if not self.online:
                await asyncio.sleep(1)
                continue
            self._part.clear()
            self._answers.append(("app/want", json.dumps({"sha256": sha, "offset": len(code), "length": CHUNK})))
            self._news.set()
            came = await self._pause(self._part, PATIENCE)
            if came and self._chunk["sha256"] == sha and self._chunk["offset"] == len(code):
                code += binascii.a2b_base64(self._chunk["data"].encode())
            await asyncio.sleep(0.1)  # It keeps to its rate.
        if binascii.hexlify(hashlib.sha256(code).digest()).decode() != sha:
            self._set(tried=sha, state="Refused", message="what came is not what was signed")
            return
        with open(f"{self.folder}/{sha[:16]}.py", "wb") as file:
            file.write(code)
        before = {k: self._app.get(k) for k in ("sha256", "version")} if self._app.get("sha256") else None
        self._set(sha256=sha, version=manifest["version"], state="Trial", tries=0, message="", before=before, tried=sha)
        self._start()

    def _boot(self):
        """Starts what it had; one on trial that did not prove itself in TRIES starts is given up."""
        if self._app.get("state") == "Trial":
            self._set(tries=self._app["tries"] + 1)
            if self._app["tries"] >= TRIES:
                return self._back(f"it did not come up in {TRIES} starts")
        return self._start()

    def _start(self):
        if self._code is not None:
            self._code.cancel()
        self._code = asyncio.create_task(self._apply(self._app["sha256"])) if self._app.get("sha256") else None

    async def _apply(self, sha):
        try:
            with open(f"{self.folder}/{sha[:16]}.py") as file:
                scope = {"__name__": "app"}
                exec(file.read(), scope)
            work = asyncio.create_task(scope["main"](self))
            try:
                begun = seconds()
                while not work.done():
                    await asyncio.sleep(0.2)
                    if seconds() - begun >= self._trial:
                        self.confirm()
                await work
                self.confirm()
            finally:
                work.cancel()
        except Exception as error:
            self.log(f"application: {type(error).__name__} {error}")
            if self._app.get("state") == "Trial" and self._app.get("sha256") == sha:
                self._back(f"{type(error).__name__}: {error}")
            else:
                self._set(message=f"it ended: {error}")

    def _back(self, why):
        before = self._app.get("before") or {"sha256": "", "version": ""}
        self._code = None
        self._set(state="RolledBack", message=why[:200], tried=self._app["sha256"], before=None, tries=0, **before)
        self._start()
