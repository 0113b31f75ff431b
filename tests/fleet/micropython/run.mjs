// Runs a program under MicroPython with a bridge to TCP, as its port to WebAssembly has no sockets.
// Arguments: the folder of node_modules, the folder whose files it gets, the program.
import net from "node:net";
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, folder, program] = process.argv.slice(2);
const found = createRequire(path.join(modules, "x.js")).resolve("@micropython/micropython-webassembly-pyscript/micropython.mjs");
const { loadMicroPython } = await import(pathToFileURL(found));

class Connection {
  constructor(socket) {
    this.socket = socket;
    this.parts = [];
    this.ended = false;
    this.wake = () => {};
    socket.on("data", (part) => { this.parts.push(part); this.wake(); });
    for (const event of ["end", "error", "close"]) socket.on(event, () => { this.ended = true; this.wake(); });
  }
  // What has come, in base64; empty at the end.
  async read() {
    while (!this.parts.length && !this.ended) await new Promise((wake) => { this.wake = wake; });
    return Buffer.concat(this.parts.splice(0)).toString("base64");
  }
  write(text) { this.socket.write(Buffer.from(text, "base64")); }
  close() { this.socket.destroy(); }
}

const bridge = {
  connect: (host, port) => new Promise((done) => {
    const socket = net.connect(port, host, () => done(new Connection(socket)));
    socket.on("error", () => done(null));
  }),
  exit: (code) => process.exit(code),
};

const micropython = await loadMicroPython({ heapsize: 512 * 1024, stdout: (line) => console.log(line), linebuffer: true });
micropython.registerJsModule("bridge", bridge);
for (const name of fs.readdirSync(folder)) micropython.FS.writeFile("/" + name, fs.readFileSync(path.join(folder, name)));
micropython.runPython("import sys; sys.path.append('/')");
await micropython.runPythonAsync(fs.readFileSync(program, "utf8"));
