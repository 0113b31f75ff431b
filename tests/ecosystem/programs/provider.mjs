// An OpenID provider: everybody is who they say they are, and is in the group dev.
// Arguments: the folder with node_modules, the port, PEM files of key and certificate, seconds that ID tokens last.
import fs from 'node:fs';
import https from 'node:https';
const [folder, port, key, cert, seconds] = process.argv.slice(2);
const { Provider } = await import(`${folder}/node_modules/oidc-provider/lib/index.js`);
const provider = new Provider(`https://127.0.0.1:${port}`, {
  clients: [{
    client_id: 'nemo',
    token_endpoint_auth_method: 'none',
    application_type: 'native',
    grant_types: ['urn:ietf:params:oauth:grant-type:device_code', 'refresh_token'],
    response_types: [],
    redirect_uris: [],
  }],
  features: { deviceFlow: { enabled: true }, devInteractions: { enabled: true } },
  claims: { openid: ['sub', 'groups'] },
  conformIdTokenClaims: false,
  cookies: { keys: ['of a test'] },
  findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, groups: ['dev'] }) }),
  ttl: { IdToken: Number(seconds), DeviceCode: 60, RefreshToken: 600, Grant: 600, Session: 600, Interaction: 600, AccessToken: 600 },
});
https.createServer({ key: fs.readFileSync(key), cert: fs.readFileSync(cert) }, provider.callback())
  .listen(Number(port), '127.0.0.1', () => console.log('listening'));
