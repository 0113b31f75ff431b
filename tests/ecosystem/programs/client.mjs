// The JavaScript client: typed verbs, list, watch, informer, server-side apply, exec, log, port-forward.
import assert from 'node:assert';
import { PassThrough } from 'node:stream';
import net from 'node:net';
import { createRequire } from 'node:module';
const k8s = createRequire(process.argv[3] + '/')('@kubernetes/client-node');

const namespace = process.argv[2];
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const until = async (what, test) => {
  for (let tries = 0; tries < 400; tries++) {
    const found = await test();
    if (found) return found;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  throw new Error(`waited in vain for ${what}`);
};

// An informer sees what is made, changed and removed.
const seen = [];
const informer = k8s.makeInformer(config, `/api/v1/namespaces/${namespace}/configmaps`, () =>
  core.listNamespacedConfigMap({ namespace }));
for (const verb of ['add', 'update', 'delete']) informer.on(verb, (obj) => seen.push(`${verb} ${obj.metadata.name}`));
informer.on('error', (error) => seen.push(`error ${error}`));
await informer.start();
await core.createNamespacedConfigMap({ namespace, body: { metadata: { name: 'a' }, data: { k: 'v' } } });
await until('the addition', () => seen.includes('add a'));
await core.patchNamespacedConfigMap(
  { namespace, name: 'a', body: { data: { k: 'w' } } },
  k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch));
await until('the change', () => seen.includes('update a'));
assert.equal(informer.get('a', namespace).data.k, 'w');
await core.deleteNamespacedConfigMap({ namespace, name: 'a' });
await until('the removal', () => seen.includes('delete a'));
assert.deepEqual(seen, ['add a', 'update a', 'delete a']);
await informer.stop();

// The client of objects of any kind, with server-side apply.
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const pod = {
  apiVersion: 'v1', kind: 'Pod', metadata: { name: 'one', namespace, labels: { app: 'one' } },
  spec: {
    terminationGracePeriodSeconds: 1,
    containers: [{ name: 'one', image: 'python:3', command: ['sh', '-c', 'echo up; exec python3 -m http.server 8080'] }],
  },
};
const applied = await objects.patch(pod, undefined, undefined, 'ecosystem', true, k8s.PatchStrategy.ServerSideApply);
assert.equal(applied.metadata.managedFields[0].manager, 'ecosystem');
await until('the pod', async () => (await core.readNamespacedPod({ namespace, name: 'one' })).status.phase === 'Running');
const intent = {
  apiVersion: 'meta-os.eu/v1alpha1', kind: 'Intent', metadata: { name: 'cheap', namespace },
  spec: { expectations: [{ verb: 'Ensure', targets: [{ name: 'cost', condition: 'Minimize' }] }] },
};
await objects.create(intent);
const custom = config.makeApiClient(k8s.CustomObjectsApi);
const listed = await custom.listNamespacedCustomObject({ group: 'meta-os.eu', version: 'v1alpha1', namespace, plural: 'intents' });
assert.deepEqual(listed.items.map((each) => each.metadata.name), ['cheap']);
await assert.rejects(core.readNamespacedConfigMap({ namespace, name: 'none' }), (error) => error.code === 404);

// Exec, log and port-forward over WebSockets.
const out = new PassThrough();
let text = '';
out.on('data', (chunk) => { text += chunk; });
const status = await new Promise((resolve, reject) => {
  new k8s.Exec(config).exec(namespace, 'one', 'one', ['sh', '-c', 'echo from inside'], out, null, null, false, resolve).catch(reject);
});
assert.equal(status.status, 'Success');
assert.equal(text, 'from inside\n');
const lines = new PassThrough();
let logged = '';
lines.on('data', (chunk) => { logged += chunk; });
const log = await new k8s.Log(config).log(namespace, 'one', 'one', lines, { follow: false });
await until('the log', () => logged.includes('up'));
const forward = new k8s.PortForward(config);
const server = net.createServer((socket) => { forward.portForward(namespace, 'one', [8080], socket, null, socket); });
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
await until('the forwarded port', async () => {
  try {
    return (await fetch(`http://127.0.0.1:${server.address().port}/`)).ok;
  } catch { return false; }
});
console.log('client.mjs: all passed');
process.exit(0);
