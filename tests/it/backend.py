"""An upstream in a process of its own, so that a test can kill or stop it: says its name at the first byte, then sends
everything after it back. Arguments: address, port, name, and how many seconds it thinks before it says its name (0).
Writes `ready` once it listens."""

import asyncio
import sys

HOST, PORT, NAME = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
THINKS = float(sys.argv[4]) if len(sys.argv) > 4 else 0


async def session(reader, writer):
    try:
        if await reader.read(1):
            if THINKS:
                await asyncio.sleep(THINKS)
            writer.write(NAME)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    except ConnectionError:
        pass  # clients leave as they like
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(session, HOST, PORT, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
