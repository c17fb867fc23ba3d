#!/usr/bin/env node
// Builds one function through the gateway's queue, and asks about the build by its ID.
//
//   queued.js build IMAGE FOLDER | log ID | status ID | cancel ID
//
// $OPENFAAS_URL is the gateway, $PAYLOAD_SECRET the file with the signing key. FOLDER is the build context. A request that is
// too large for the queue is stored first: at $BUILDER_URL if that is set, otherwise through the gateway.
// The log goes to the standard error. The last line of the standard output is what is known of the build. Exit code: 0 the image
// was built (`log`, `status`, `cancel`: there was an answer); 1 it was not; 2 there was no answer.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const { setTimeout } = require('node:timers/promises');
const { pack } = require('./tar');

const gateway = process.env.OPENFAAS_URL.replace(/\/$/, '');
const builder = `${gateway}/function/builder-fn`;
const key = fs.readFileSync(process.env.PAYLOAD_SECRET, 'utf8').trim();
const sign = (body) => `sha256=${crypto.createHmac('sha256', key).update(body).digest('hex')}`;
const QUEUED_BYTES_MAX = 256_000;

// Sends a question, which has no body to sign.
function ask(method, path, accept = 'application/json') {
  const at = new Date().toISOString();
  const signature = sign(`${method}\n${path}\n${at}`);
  return fetch(builder + path, { method, headers: { 'X-Signed-At': at, 'X-Build-Signature': signature, Accept: accept } });
}

async function post(url, body, type) {
  const response = await fetch(url, { method: 'POST', body, headers: { 'Content-Type': type, 'X-Build-Signature': sign(body) } });
  if (!response.ok) throw new Error(`${response.status} from ${url}: ${await response.text()}`);
  return response;
}

// Returns the ID of the build.
async function submit(image, folder) {
  const config = Buffer.from(JSON.stringify({ image }));
  let body = pack([['./context', folder], ['./com.openfaas.docker.config', config]]);
  let type = 'application/octet-stream';
  if (body.length > QUEUED_BYTES_MAX) {
    const stored = await post(`${process.env.BUILDER_URL || builder}/contexts`, body, type);
    const { context } = await stored.json();
    body = Buffer.from(JSON.stringify({ image, context }));
    type = 'application/json';
  }
  const queued = await post(`${gateway}/async-function/builder-fn`, body, type);
  return queued.headers.get('X-Call-Id');
}

// Prints the log to its end. A lost connection continues at the next line; 404 means that no builder has the call yet.
async function follow(id) {
  for (let next = 1; ; await setTimeout(1000)) {
    try {
      const log = await ask('GET', `/builds/${id}/log?from=${next}`, 'text/event-stream');
      if (!log.ok) {
        if (log.status === 404 || log.status >= 500) continue;
        throw new Error(`${log.status}: ${await log.text()}`);
      }
      let rest = '';
      for await (const piece of log.body.pipeThrough(new TextDecoderStream())) {
        const events = (rest + piece).split('\n\n');
        rest = events.pop();
        for (const event of events) {
          const record = JSON.parse(event.replace(/^data: /, ''));
          if (record.status !== 'in_progress') return;
          record.log.forEach((line) => console.error(line));
          next = record.seq + 1;
        }
      }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
    }
  }
}

// The builder may still deploy the image when the log has ended.
async function status(id) {
  for (;; await setTimeout(1000)) {
    const build = await (await ask('GET', `/builds/${id}`)).json();
    if (!['waiting', 'running', 'deploying'].includes(build.state)) return build;
  }
}

async function main([command, ...args]) {
  if (command === 'log') return follow(args[0]);
  if (command === 'status' || command === 'cancel') {
    const answer = await ask(command === 'cancel' ? 'DELETE' : 'GET', `/builds/${args[0]}`);
    console.log(await answer.text());
    return answer.ok ? 0 : 2;
  }
  const id = await submit(...args);
  console.error(id);
  await follow(id);
  const build = await status(id);
  console.log(JSON.stringify(build));
  return build.state === 'success' ? 0 : 1;
}

main(process.argv.slice(2)).then(
  (code) => { process.exitCode = code; },
  (error) => { console.error(error.message); process.exitCode = 2; },
);
