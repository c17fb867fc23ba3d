#!/usr/bin/env node
// Builds one function like the published Node.js example: shrinkwrap, tar, HMAC, POST.
//
//   index.js IMAGE FOLDER [TEMPLATE]
//
// With TEMPLATE, faas-cli ($FAAS_CLI) lays out the context from ./template. The current folder must not contain a
// stack.yaml, which faas-cli would use instead of its flags. Without TEMPLATE, FOLDER is the context.
// $BUILDER_URL is the builder's URL without "/build", $PAYLOAD_SECRET the file with the signing key.
// Prints one line of JSON. Exit code: 0 the image was built; 1 a JSON answer reports a failure; 2 there was no answer,
// or none in JSON.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const path = require('node:path');
const { spawnSync } = require('node:child_process');
const { pack } = require('./tar');

const CONFIG = './com.openfaas.docker.config';

function shrinkwrap(image, handler, lang) {
  const args = ['build', '--shrinkwrap', '--lang', lang, '--handler', handler, '--name', 'context', '--image', image];
  const { status, error } = spawnSync(process.env.FAAS_CLI || 'faas-cli', args, { stdio: ['ignore', 2, 2] });
  if (error) throw error;
  if (status !== 0) throw new Error('faas-cli build --shrinkwrap failed');
  return path.join('build', 'context');
}

// fetch() gives up if the answer's headers take more than five minutes, and a build may take longer.
function post(url, headers, body) {
  return new Promise((resolve, reject) => {
    const client = url.startsWith('https:') ? https : http;
    const request = client.request(url, { method: 'POST', headers }, async (response) => {
      try {
        response.setEncoding('utf8');
        let text = '';
        for await (const chunk of response) text += chunk;
        resolve({ status: response.statusCode, text });
      } catch (error) {
        reject(error);
      }
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function main([image, folder, lang]) {
  if (!folder) throw new Error('usage: index.js IMAGE FOLDER [TEMPLATE]');
  const context = lang ? shrinkwrap(image, folder, lang) : folder;
  const config = Buffer.from(JSON.stringify({ image, buildArgs: {} }));
  const body = pack([['./context', context], [CONFIG, config]]);

  const key = fs.readFileSync(process.env.PAYLOAD_SECRET, 'utf8').trim();
  const digest = crypto.createHmac('sha256', key).update(body).digest('hex');
  const { status, text } = await post(
    `${process.env.BUILDER_URL.replace(/\/$/, '')}/build`,
    {
      'Accept': 'application/json, text/plain, */*',
      'Content-Type': 'application/octet-stream',
      'Content-Length': body.length,
      'X-Build-Signature': `sha256=${digest}`,
    },
    body,
  );

  let result;
  try {
    result = JSON.parse(text);
  } catch {
    console.log(JSON.stringify({ http: status, error: text }));
    return 2;
  }
  const { image: built, error, log } = result;
  console.log(JSON.stringify({ http: status, status: result.status, image: built, error, log_lines: (log || []).length }));
  return status === 200 && result.status === 'success' ? 0 : 1;
}

main(process.argv.slice(2)).then(
  (code) => { process.exitCode = code; },
  (error) => { console.error(error.message); process.exitCode = 2; },
);
