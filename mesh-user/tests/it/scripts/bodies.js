// A server that says what arrived: bodies' digests, trailers, tunnels.
//
// bodies.js PORT: HTTP/1.1 on PORT, HTTP/2 without TLS on PORT + 1.
const http = require('http');
const http2 = require('http2');
const crypto = require('crypto');

const port = Number(process.argv[2]);
const block = Buffer.from(Array.from({ length: 65521 }, (_, at) => (at * 7) % 256));

// PUT: the digest of what came. GET /length/N, /chunked/N: N bytes, their digest behind them where there are trailers.
function answer(request, response) {
  const [, how, count] = request.url.split('/');
  const digest = crypto.createHash('sha256');
  if (request.method === 'PUT' || request.method === 'POST') {
    let bytes = 0;
    request.on('data', (data) => { digest.update(data); bytes += data.length; });
    request.on('end', () => {
      const said = { bytes, sha256: digest.digest('hex'), trailers: request.trailers };
      response.setHeader('trailer', 'x-sum');
      response.write(JSON.stringify(said) + '\n');
      response.addTrailers({ 'x-sum': said.sha256 });
      response.end();
    });
    return;
  }
  request.resume();
  let left = Number(count || 0);
  if (how === 'length') response.setHeader('content-length', left);
  const more = () => {
    while (left > 0) {
      const part = left < block.length ? block.subarray(0, left) : block;
      left -= part.length;
      if (!response.write(part)) return response.once('drain', more);
    }
    response.end();
  };
  more();
}

const server = http.createServer({ requestTimeout: 0 }, answer);
server.on('connect', (request, socket, head) => {
  socket.on('error', () => {});
  socket.write(`HTTP/1.1 200 OK\r\n\r\nto ${request.url}: `);
  socket.write(head);
  socket.pipe(socket);
});
server.listen(port, '::', () => {
  http2.createServer(answer).listen(port + 1, '::', () => console.log('listening'));
});
