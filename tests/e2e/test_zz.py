import asyncio, json, socket
from collections import Counter

async def raw(cluster):
    return await asyncio.open_connection("127.0.0.1", cluster.server.port)

def post(body, *headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return b"\r\n".join([b"POST /v1/completions HTTP/1.1", b"host: r", b"content-length: %d" % len(data), *headers, b"", data])

async def test_id_collision(cluster, wish):
    await cluster.start("p0 d0")
    rid = cluster.server.shell.router_id
    t = cluster.send(wish(output_tokens=3000), **{"x-request-id": f"{rid}-1"})
    await cluster.until(lambda: cluster.flights("d0"))
    r, w = await raw(cluster)
    w.write(post(wish().body))
    try:
        async with asyncio.timeout(2): print("ANS", await r.read(100))
    except TimeoutError: print("TIMEOUT")
    print("BROKEN", cluster.server.broken)
    t.cancel()

async def test_id_collision2(cluster, wish):
    await cluster.start("p0 d0")
    ts = [cluster.send(wish(output_tokens=3000), **{"x-request-id": i}) for i in ("x#1", "x")]
    await cluster.until(lambda: cluster.flights("d0")==2)
    r, w = await raw(cluster)
    w.write(post(wish().body, b"x-request-id: x"))
    try:
        async with asyncio.timeout(2): print("ANS", await r.read(100))
    except TimeoutError: print("TIMEOUT")
    print("BROKEN", cluster.server.broken)
    for t in ts: t.cancel()

async def test_utf8(cluster, wish):
    await cluster.start("p0 d0")
    r, w = await raw(cluster)
    w.write(post(b'{"model":"fake-llama","prompt":["\xff"]}'))
    async with asyncio.timeout(2): print("ANS", await r.read(300))

async def test_pipelined_pages(cluster, wish):
    await cluster.start("p0 d0")
    sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", cluster.server.port))
    one = b"GET /metrics HTTP/1.1\r\nhost: r\r\n\r\n"
    try:
        async with asyncio.timeout(3): await loop.sock_sendall(sock, one * 3000)
    except TimeoutError: print("send blocked (good)")
    await asyncio.sleep(.5)
    (conn,) = [c for c in cluster.server.connections if c.transport.get_write_buffer_size()]
    print("BUF", conn.transport.get_write_buffer_size())
    sock.close()

async def test_trailer(cluster, wish):
    await cluster.start("p0 d0")
    r, w = await raw(cluster)
    w.write(b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ")
    for i in range(50):
        w.write(b"a" * 100_000); await asyncio.sleep(0)
    await asyncio.sleep(.3)
    (conn,) = [c for c in cluster.server.connections if c._request is not None]
    print("closing", conn._closing, conn._fault)
    async with asyncio.timeout(2):
        try: print("ANS", await r.read(300))
        except Exception as e: print(repr(e))

async def test_close_stalled(cluster, wish):
    await cluster.start("p0 d0")
    sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, ("127.0.0.1", cluster.server.port))
    await cluster.until(lambda: len(cluster.server.connections)==1)
    (conn,) = cluster.server.connections
    conn.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    body = wish(output_tokens=3000, stream=False).body
    await loop.sock_sendall(sock, post(body, b"connection: close"))
    await cluster.until(lambda: cluster.counts["FINISHED"])
    await asyncio.sleep(.2)
    print("BUF", conn.transport.get_write_buffer_size(), conn.deadline_s, conn in cluster.server.connections)
    sock.close()

SMUGGLES = {
 "cl_te": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_cl": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\ncontent-length: 6\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "cl_cl": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 0\r\ncontent-length: 40\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "cl_list": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 0, 0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "cl_plus": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: +0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_xchunked": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_chunked_id": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_gzip_chunked": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_twice": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_10": b"POST /v1/completions HTTP/1.0\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "te_space": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "fold": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "fold_te": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "barelf": b"POST /v1/completions HTTP/1.1\nhost: r\ncontent-length: 0\n\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "barecr": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\nx: a\rcontent-length: 5\r\ncontent-length: 0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "nul": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\nx: a\0b\r\ncontent-length: 0\r\n\r\n",
 "chunk_ext_lf": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n0;\nx\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "chunk_neg": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n",
 "chunk_0x": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nabcde\r\n0\r\n\r\n",
 "get_body": b"GET /health HTTP/1.1\r\nhost: r\r\ncontent-length: 37\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\nx: 1\r\n\r\n",
 "two_hosts": b"GET /health HTTP/1.1\r\nhost: r\r\nhost: s\r\n\r\n",
 "no_host": b"GET /health HTTP/1.1\r\n\r\n",
 "connect": b"CONNECT /v1/completions HTTP/1.1\r\nhost: r\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "upgrade": b"GET /health HTTP/1.1\r\nhost: r\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\nGET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "upgrade_post": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\n{}GET /metrics HTTP/1.1\r\nhost: r\r\n\r\n",
 "pri": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
 "v09": b"GET /health\r\n\r\n",
 "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
 "crlfs": b"\r\n"*20000,
 "absolute": b"GET http://x/health HTTP/1.1\r\nhost: r\r\n\r\n",
 "cl_huge": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: 99999999999999999999999999\r\n\r\n",
 "cl_neg": b"POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-length: -5\r\n\r\n",
}
async def test_smuggle(cluster, wish):
    await cluster.start("p0 d0")
    for name, data in SMUGGLES.items():
        r, w = await raw(cluster)
        w.write(data)
        out = b""
        try:
            async with asyncio.timeout(.2):
                while d := await r.read(65536): out += d
            end="EOF"
        except TimeoutError: end="open"
        except ConnectionResetError: end="RST"
        import re
        print(name, end, re.findall(rb"HTTP/1\.1 \d+", out), out.split(b"\r\n\r\n")[1][:110] if b"\r\n\r\n" in out else out[:50])
        w.close()
