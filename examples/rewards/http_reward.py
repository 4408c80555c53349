"""An HTTP reward in Python's standard library: `python3 http_reward.py FILE FUNCTION PORT` (0 takes a free port)."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import folgore_reward

function = folgore_reward.load(*sys.argv[1:3])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(folgore_reward.score(function, request)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Handler)
print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
