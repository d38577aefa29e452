// A real OpenID provider (npm's oidc-provider) with keys of its own making. Access tokens for the resource `shop` are JWTs,
// by client_credentials: each client's name is its way of signing.
//
// openid.mjs MODULE ADDRESS PORT CLAIM
//
// MODULE is where oidc-provider lies, CLAIM what each token says as `generation`. New keys at each start.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const [module, address, port, generation] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(module));

const pairs = {
  RS256: ['rsa', { modulusLength: 2048 }],
  ES256: ['ec', { namedCurve: 'P-256' }],
  EdDSA: ['ed25519', {}],
};
const keys = Object.entries(pairs).map(([alg, [kind, options]]) => ({
  ...generateKeyPairSync(kind, options).privateKey.export({ format: 'jwk' }),
  alg,
  use: 'sig',
  kid: randomUUID(),
}));

const resource = 'urn:example:shop';
const issuer = `http://${address}:${port}`;
const provider = new Provider(issuer, {
  jwks: { keys },
  clients: Object.keys(pairs).map((alg) => ({
    client_id: alg,
    client_secret: 'a secret of the story only',
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
  })),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      useGrantedResource: () => true,
      getResourceServerInfo: (_context, _indicator, client) => ({
        scope: 'read write',
        audience: 'shop',
        accessTokenFormat: 'jwt',
        accessTokenTTL: 3600,
        jwt: { sign: { alg: client.clientId } },
      }),
    },
  },
  extraTokenClaims: () => ({ generation, team: { name: 'blue' } }),
});
provider.on('server_error', (_context, error) => console.error(error));
provider.listen(Number(port), address, () => console.log(`listening at ${issuer}`));
