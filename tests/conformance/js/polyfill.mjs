// Node 22 has it, a dependency of js-libp2p uses it, and Node 20 is still what many have.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new this((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}
