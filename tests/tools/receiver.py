#!/usr/bin/env python3
"""A callback receiver that verifies every request with the published Standard Webhooks library.

    receiver.py '{"secret": "whsec_…", "log": FILE, "answers": [{"status": 503, "headers": {"retry-after": "1"}}], "then": 204}'

Prints its port. In the log is one JSON line for each request, before it is answered: what came, whether it verified,
and what the answer will be. The answers are given in order; after the last every request gets `then`. `delay` seconds
hold an answer back. With `certificate` and `key` (PEM files) it speaks TLS. As a proxy (absolute request targets) it
answers all the same.
"""

import json
import ssl
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

plan = json.loads(sys.argv[1])
log = open(plan["log"], "a", encoding="utf-8")
answers = iter(plan.get("answers", []))
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            event, verified = Webhook(plan["secret"]).verify(body, headers), True
        except WebhookVerificationError:
            event, verified = None, False
        with lock:
            answer = next(answers, {"status": plan.get("then", 204)})
            print(
                json.dumps(
                    {
                        "target": self.path,
                        "headers": headers,
                        "body": body,
                        "verified": verified,
                        "event": event,
                        "status": answer["status"],
                        "at": time.monotonic(),
                    }
                ),
                file=log,
                flush=True,
            )
        time.sleep(answer.get("delay", 0))
        self.send_response(answer["status"])
        for name, value in answer.get("headers", {}).items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        pass


server = Server(("127.0.0.1", 0), Handler)
if "certificate" in plan:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(plan["certificate"], plan["key"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
print(server.server_address[1], flush=True)
server.serve_forever()
