#!/usr/bin/env node
// Stands in for the Sandbox SDK's server: those of its routes that moltworker's Worker uses, with what they do to
// processes. A command runs below a shell of this server; a kill is SIGTERM to its tree, and SIGKILL five seconds later.
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { connect } from "node:net";

const processes = new Map();
const sessions = new Set();

function start(command, env) {
    const id = `proc_${processes.size}`;
    const child = spawn("bash", ["-c", `${command}; exit $?`], {
        cwd: "/root",
        env: { ...process.env, ...env },
        stdio: ["ignore", "pipe", "pipe"],
    });
    const record = { id, pid: child.pid, command, status: "running", exitCode: undefined, stdout: "", stderr: "" };
    child.stdout.on("data", (text) => (record.stdout += text));
    child.stderr.on("data", (text) => (record.stderr += text));
    record.ended = new Promise((resolve) =>
        child.on("close", (code, signal) => {
            record.exitCode = code ?? 128;
            if (record.status === "running") record.status = signal || code ? "failed" : "completed";
            resolve();
        }),
    );
    processes.set(id, record);
    return record;
}

function tree(pid) {
    let children = "";
    try {
        children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8");
    } catch {
        return [];
    }
    return [...children.split(" ").filter(Boolean).flatMap((child) => tree(Number(child))), pid];
}

function signal(pids, name) {
    for (const pid of pids) {
        try {
            process.kill(pid, name);
        } catch {
            // It has ended already.
        }
    }
}

async function kill(record) {
    const pids = tree(record.pid);
    record.status = "killed";
    signal(pids, "SIGTERM");
    const late = setTimeout(() => signal(pids, "SIGKILL"), 5000);
    await record.ended;
    clearTimeout(late);
}

/** Whether somebody listens on a port. */
const isOpen = (port) =>
    new Promise((resolve) => {
        const socket = connect(port, "127.0.0.1");
        socket.on("connect", () => (socket.destroy(), resolve(true)));
        socket.on("error", () => resolve(false));
    });

/** Events until the port is open, or the process that is to open it has ended. */
async function* watchPort({ port, processId, interval = 500 }) {
    const record = processes.get(processId);
    yield { type: "watching", port };
    for (;;) {
        if (await isOpen(port)) return yield { type: "ready", port };
        if (record && record.status !== "running") return yield { type: "process_exited", port, exitCode: record.exitCode };
        await new Promise((resolve) => setTimeout(resolve, interval));
    }
}

const shown = ({ id, pid, command, status, exitCode }) => ({ id, pid, command, status, exitCode });

async function answer(method, path, body) {
    const id = path.split("/")[3];
    const record = processes.get(id);
    switch (`${method} ${record ? path.replace(id, "ID") : path}`) {
        case "GET /api/ping":
            return { success: true, message: "pong" };
        case "POST /api/session/create":
            if (sessions.has(body.id)) throw new Error(`session ${body.id} exists`);
            sessions.add(body.id);
            return { success: true, id: body.id };
        case "POST /api/execute": {
            const run = start(body.command, body.env);
            processes.delete(run.id);
            await run.ended;
            return { success: run.exitCode === 0, exitCode: run.exitCode, stdout: run.stdout, stderr: run.stderr };
        }
        case "POST /api/process/start": {
            const { id, pid, command } = start(body.command, body.env);
            return { success: true, processId: id, pid, command };
        }
        case "GET /api/process/list":
            return { success: true, processes: [...processes.values()].map(shown) };
        case "GET /api/process/ID":
            return { success: true, process: shown(record) };
        case "GET /api/process/ID/logs":
            return { success: true, processId: id, stdout: record.stdout, stderr: record.stderr };
        case "DELETE /api/process/ID":
            await kill(record);
            return { success: true, processId: id };
        case "POST /api/write":
            writeFileSync(body.path, body.content);
            return { success: true, path: body.path };
        case "POST /api/read":
            return { success: true, path: body.path, content: readFileSync(body.path, "utf8") };
    }
}

createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    let said, status;
    if (request.url === "/api/port-watch") {
        response.writeHead(200, { "content-type": "text/event-stream" });
        for await (const event of watchPort(JSON.parse(text))) {
            if (response.destroyed) return;
            response.write(`data: ${JSON.stringify(event)}\n\n`);
        }
        return response.end();
    }
    try {
        said = await answer(request.method, request.url, text && JSON.parse(text));
        status = said ? 200 : 404;
    } catch (error) {
        [said, status] = [{ error: String(error) }, 500];
    }
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(said ?? {}));
}).listen(3000, "0.0.0.0");

for (const name of ["SIGTERM", "SIGINT"]) process.on(name, () => process.exit(0));
