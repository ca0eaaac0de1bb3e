// js-libp2p with its own kad-dht, told what to do: tests/conformance/test_js_kad.py holds the other end.
//
//   node peer.mjs PROTOCOL        prints where it listens; then for each line {"do": "…", …} of its input one line,
//                                 {"answer": …} or {"error": "…"}. Bytes are hex. It ends with its input.

import './polyfill.mjs' // before whoever needs it
import { createInterface } from 'node:readline'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { identify } from '@libp2p/identify'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const PATIENCE_MS = 15_000
const RAW = 0x55

const anything = async () => {}
const first = () => 0

const node = await createLibp2p({
  addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: {
    identify: identify(),
    ping: ping(),
    dht: kadDHT({
      protocol: process.argv[2],
      clientMode: false,
      peerInfoMapper: passthroughMapper, // loopback addresses count
      allowQueryWithZeroPeers: true,
      initialQuerySelfInterval: 200,
      validators: { test: anything, p2pgrid: anything },
      selectors: { test: first, p2pgrid: first }
    })
  }
})
const dht = node.services.dht

const bytes = hex => Uint8Array.from(Buffer.from(hex, 'hex'))
const hex = data => Buffer.from(data.subarray()).toString('hex')
const cid = key => CID.createV1(RAW, Digest.decode(bytes(key)))
const shown = peer => ({ id: peer.id.toString(), addresses: peer.multiaddrs.map(String) })

/** Run a query to its end; return its events of that name. */
async function events (query, name) {
  const found = []
  for await (const event of query) {
    if (event.name === name) found.push(event)
  }
  return found
}

async function until (condition, signal) {
  while (!await condition()) {
    signal.throwIfAborted()
    await new Promise(resolve => setTimeout(resolve, 20))
  }
}

const commands = {
  /** Connect, and wait until identify has shown that the other serves the DHT, and it is in the table. */
  async connect ({ address }, signal) {
    const { remotePeer } = await node.dial(multiaddr(address), { signal })
    await until(async () => await dht.routingTable.find(remotePeer) != null, signal)
  },

  /** Walk to ourselves, so that others hear of us. */
  async walk (_, signal) {
    await events(dht.getClosestPeers(node.peerId.toMultihash().bytes, { signal }), '')
  },

  /** Wait until that many peers are in the table. */
  async met ({ count }, signal) {
    await until(() => dht.routingTable.size >= count, signal)
  },

  /** Return a peer as others name it, or null. */
  async find ({ id }, signal) {
    const query = dht.findPeer(peerIdFromString(id), { signal, useCache: false })
    const found = await events(query, 'FINAL_PEER')
    return found.length > 0 ? shown(found[0].peer) : null
  },

  /** Return how many others have said that they keep it. */
  async put ({ key, value }, signal) {
    const answers = await events(dht.put(bytes(key), bytes(value), { signal }), 'PEER_RESPONSE')
    return answers.filter(each => each.messageName === 'PUT_VALUE').length
  },

  /** Return the value, or null. */
  async get ({ key }, signal) {
    const found = await events(dht.get(bytes(key), { signal }), 'VALUE')
    return found.length > 0 ? hex(found.at(-1).value) : null
  },

  async provide ({ key }, signal) {
    await events(dht.provide(cid(key), { signal }), '')
  },

  /** Return the providers. */
  async providers ({ key }, signal) {
    const found = await events(dht.findProviders(cid(key), { signal }), 'PROVIDER')
    return found.flatMap(each => each.providers).map(shown)
  }
}

const say = words => process.stdout.write(JSON.stringify(words) + '\n')

say({ answer: node.getMultiaddrs()[0].toString() })
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  try {
    say({ answer: await commands[order.do](order, AbortSignal.timeout(PATIENCE_MS)) ?? null })
  } catch (error) {
    say({ error: `${error.name}: ${error.message}` })
  }
}
process.exit(0)
