#!/usr/bin/env python3
"""An S3 endpoint on loopback that enforces a policy of AWS's, in front of a server that does not
know all of its conditions. Each request becomes an action, a resource and condition keys as AWS
documents them; what the policy does not allow, or denies, gets 403, all else goes to the server as
it came, its signed Host included. Prints its port, then a line for each request. Run by policy.sh.

    policy.py POLICY.json BUCKET http://HOST:PORT"""

import http.client
import json
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

policy = json.load(open(sys.argv[1], encoding="utf-8"))
bucket = sys.argv[2]
server = urlsplit(sys.argv[3])


def wildcard(pattern, text, flags=0):
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), text, flags | re.S) is not None


def several(value):
    return value if isinstance(value, list) else [value]


def holds(condition, context):
    """All operators and all keys of a condition; of several values one is enough."""
    for operator, keys in condition.items():
        for key, values in keys.items():
            there = context.get(key.lower())
            if operator == "Null":
                fits = (there is None) == (several(values)[0] == "true")
            elif operator == "Bool":
                fits = there is not None and there in several(values)
            elif operator == "StringLike":
                fits = there is not None and any(wildcard(v, there) for v in several(values))
            else:
                sys.exit(f"policy.py does not know the operator {operator}")
            if not fits:
                return False
    return True


def decision(action, resource, context):
    allowed = False
    for statement in policy["Statement"]:
        if not any(wildcard(a, action, re.I) for a in several(statement["Action"])):
            continue
        if not any(wildcard(r, resource) for r in several(statement["Resource"])):
            continue
        if not holds(statement.get("Condition", {}), context):
            continue
        if statement["Effect"] == "Deny":
            return f"denied by {statement['Sid']}"
        allowed = True
    return None if allowed else "allowed by nothing"


def asked(method, path, query, headers):
    """Action, resource, condition keys of a request, by AWS's service authorization reference."""
    _, named, key = (unquote(path) + "/").split("/", 2)
    key = key[:-1]
    context = {}
    resource = f"arn:aws:s3:::{named}" + (f"/{key}" if key else "")
    if not key:
        if method == "GET" and "uploads" in query:
            return "s3:ListBucketMultipartUploads", resource, context
        if method in ("GET", "HEAD"):
            if method == "GET":
                context["s3:prefix"] = query.get("prefix", [""])[0]
            return "s3:ListBucket", resource, context
        return f"s3:{method}Bucket", resource, context
    if method in ("GET", "HEAD"):
        return ("s3:ListMultipartUploadParts" if "uploadId" in query else "s3:GetObject",
                resource, context)
    if method == "DELETE":
        return ("s3:AbortMultipartUpload" if "uploadId" in query else "s3:DeleteObject",
                resource, context)
    starts_or_adds = method == "POST" and "uploads" in query or "partNumber" in query
    context["s3:objectcreationoperation"] = "false" if starts_or_adds else "true"
    if headers.get("If-None-Match"):
        context["s3:if-none-match"] = headers["If-None-Match"]
    return "s3:PutObject", resource, context


class Gate(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self):
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        action, resource, context = asked(self.command, parts.path, query, self.headers)
        refused = decision(action, resource, context)
        print(self.command, self.path.split("?")[0], action, refused or "allowed", flush=True)
        if refused:
            text = f"<Error><Code>AccessDenied</Code><Message>{refused}</Message></Error>".encode()
            return self.answer(403, [("Content-Type", "application/xml")], text)
        backend = http.client.HTTPConnection(server.hostname, server.port, timeout=60)
        backend.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                backend.putheader(name, value)
        backend.endheaders(body)
        answer = backend.getresponse()
        data = answer.read()
        headers = [(n, v) for n, v in answer.getheaders()
                   if n.lower() not in ("connection", "transfer-encoding", "content-length")]
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.answer(answer.status, headers, data, length)
        backend.close()

    def answer(self, status, headers, data, length=None):
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_request

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        pass  # a client that hung up


gate = Server(("127.0.0.1", 0), Gate)
print(gate.server_port, flush=True)
gate.serve_forever()
