// libuv's sockets through Node.js: plain echo, a WebSocket, and HTTP/2 streams that talk both ways, as gRPC's do.
// `serve PORT` answers, `call HOST PORT` says what it saw as one JSON line.
'use strict';
const crypto = require('crypto');
const events = require('events');
const http = require('http');
const http2 = require('http2');
const net = require('net');

const MARKER = 'MARKER-7f3a91c2-readable';
const GUID = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'; // RFC 6455 section 1.3
const MESSAGES = 50;

const acceptKey = key => crypto.createHash('sha1').update(key + GUID).digest('base64');

// One masked text frame of fewer than 126 bytes (RFC 6455 section 5.2).
function masked(text) {
  const mask = crypto.randomBytes(4), body = Buffer.from(text);
  body.forEach((byte, at) => { body[at] = byte ^ mask[at % 4]; });
  return Buffer.concat([Buffer.from([0x81, 0x80 | body.length]), mask, body]);
}

function unmasked(frame) {
  const mask = frame.subarray(2, 6), body = Buffer.from(frame.subarray(6));
  body.forEach((byte, at) => { body[at] = byte ^ mask[at % 4]; });
  return Buffer.concat([Buffer.from([0x81, body.length]), body]);
}

async function serve(port) {
  const web = http.createServer();
  web.on('upgrade', (request, socket) => {
    socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n' +
      `Sec-WebSocket-Accept: ${acceptKey(request.headers['sec-websocket-key'])}\r\n\r\n`);
    socket.on('data', frame => socket.write(unmasked(frame)));
    socket.on('end', () => socket.end());
  });
  const streaming = http2.createServer();
  streaming.on('stream', stream => {
    stream.respond({ ':status': 200 });
    stream.pipe(stream);
  });
  const echo = net.createServer({ allowHalfOpen: true }, socket => socket.pipe(socket));
  for (const [offset, server] of [echo, web, streaming].entries()) {
    server.listen(port + offset, '::');
    await events.once(server, 'listening');
  }
  console.log('listening');
}

async function echoes(host, port) {
  const socket = net.connect({ host, port });
  socket.end(MARKER);
  let back = '';
  for await (const part of socket) back += part;
  return back;
}

async function webSocket(host, port) {
  const key = crypto.randomBytes(16).toString('base64');
  const headers = { Connection: 'Upgrade', Upgrade: 'websocket', 'Sec-WebSocket-Key': key, 'Sec-WebSocket-Version': 13 };
  const request = http.request({ host, port, headers }).end();
  const [response, socket] = await events.once(request, 'upgrade');
  const accepted = response.headers['sec-websocket-accept'] === acceptKey(key);
  let rounds = 0;
  for (; rounds < MESSAGES; rounds++) {
    const text = `${MARKER} ${rounds}`;
    socket.write(masked(text));
    const [frame] = await events.once(socket, 'data');
    if (frame.subarray(2).toString() !== text) break;
  }
  socket.end();
  return { accepted, rounds };
}

// One stream: a message goes out only when the one before it has come back.
async function talk(session, name) {
  const stream = session.request({ ':method': 'POST', ':path': `/${name}` });
  let rounds = 0;
  for (; rounds < MESSAGES; rounds++) {
    const text = `${MARKER} ${name} ${rounds}`;
    stream.write(text);
    const [part] = await events.once(stream, 'data');
    if (part.toString() !== text) break;
  }
  stream.end();
  stream.resume();
  await events.once(stream, 'close');
  return rounds;
}

async function http2Streams(host, port) {
  const session = http2.connect(`http://${host.includes(':') ? `[${host}]` : host}:${port}`);
  const rounds = await Promise.all([...Array(8).keys()].map(name => talk(session, name)));
  session.close();
  return rounds;
}

async function call(host, port) {
  const refused = await events.once(net.connect({ host, port: port + 999 }), 'connect').catch(error => error.code);
  console.log(JSON.stringify({
    echo: await echoes(host, port),
    webSocket: await webSocket(host, port + 1),
    http2: await http2Streams(host, port + 2),
    refused,
  }));
}

const [verb, ...args] = process.argv.slice(2);
if (verb === 'serve') serve(Number(args[0]));
else call(args[0], Number(args[1]));
