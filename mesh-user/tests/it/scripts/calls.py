"""gRPC's own library (grpcio, over its C core): calls that stream both ways, a deadline, a cancellation, a refusal.
`serve PORT` answers, `call TARGET ELSEWHERE` says what it saw as one JSON line; nobody serves ELSEWHERE."""

import json, queue, sys, threading
from concurrent import futures

import grpc

MARKER = "MARKER-7f3a91c2-readable"
MESSAGES = 50
CALLS = 8
PATIENCE_S = 60

ended = queue.Queue()


class Story(grpc.GenericRpcHandler):
    """Messages are bytes: no code is generated for them."""

    def service(self, details):
        return {
            "/story/Echo": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages),
            "/story/Wait": grpc.unary_stream_rpc_method_handler(self.wait),
            "/story/Ended": grpc.unary_unary_rpc_method_handler(self.ended),
        }.get(details.method)

    def wait(self, message, context):
        over = threading.Event()
        # False: the call was over before this began.
        if context.add_callback(over.set):
            yield b"begun"
            over.wait(PATIENCE_S)
        ended.put(message)

    def ended(self, message, context):
        while (told := ended.get(timeout=context.time_remaining())) != message:
            pass
        return told


def serve(port):
    server = grpc.server(futures.ThreadPoolExecutor(16), [Story()])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("listening", flush=True)
    server.wait_for_termination()


def talk(channel, name):
    """A message goes out only when the one before it has come back."""
    said = queue.Queue()
    answers = channel.stream_stream("/story/Echo")(iter(said.get, None), timeout=PATIENCE_S)
    rounds = 0
    for rounds in range(1, MESSAGES + 1):
        text = f"{MARKER} {name} {rounds}".encode()
        said.put(text)
        if next(answers) != text:
            break
    said.put(None)
    return rounds if list(answers) == [] else -1


def code_of(call):
    try:
        call()
        return "OK"
    except grpc.RpcError as error:
        return error.code().name


def call(target, elsewhere):
    with grpc.insecure_channel(target) as channel:
        with futures.ThreadPoolExecutor(CALLS) as pool:
            rounds = list(pool.map(lambda name: talk(channel, name), range(CALLS)))
        wait, ask = channel.unary_stream("/story/Wait"), channel.unary_unary("/story/Ended")
        late = code_of(lambda: list(wait(b"late", timeout=2)))
        told_late = ask(b"late", timeout=PATIENCE_S).decode()
        waiting = wait(b"cancelled", timeout=PATIENCE_S)
        next(waiting)
        waiting.cancel()
        cancelled = code_of(lambda: next(waiting))
        # Without a mesh too, the servers of some 5 % of grpcio's clients never hear that a call was cancelled.
        after = talk(channel, "after")
    with grpc.insecure_channel(elsewhere) as channel:
        refused = code_of(lambda: list(channel.unary_stream("/story/Wait")(b"", timeout=PATIENCE_S)))
    saw = {"rounds": rounds, "deadline": [late, told_late], "cancelled": [cancelled, after], "refused": refused}
    print(json.dumps(saw))


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    serve(*words) if verb == "serve" else call(*words)
