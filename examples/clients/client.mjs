// The mesh over HTTP from Node.js 18 or newer, without packages. Copy `MeshHttp` into your program.
//
//   node client.mjs health
//   node client.mjs search "late invoice"
//   node client.mjs action crm-app refund '{"order": "A-1001", "cents": 500}' refund-A-1001
//   node client.mjs history crm-app
//
// MESH_TOKEN is an access token (`meshctl tokens issue`) or a node's API key, MESH_REFRESH_TOKEN
// what renews it, MESH_HTTP_URL the gateway (default http://127.0.0.1:8080).

import { randomUUID } from "node:crypto";
import { pathToFileURL } from "node:url";

const PREFIX = "/api/ai-engine";
const TRIES = 4;
const LONGEST_PAUSE_S = 60;
const TIMEOUT_MS = 60_000;

/** The gateway refused; `body` says why (`error`, `kind`, `message`, `errors` by field). */
export class MeshHttpError extends Error {
  constructor(status, body) {
    super(`${status} ${body.error ?? ""}: ${body.message ?? ""}`);
    this.status = status;
    this.body = body;
  }
}

/** Search, actions and their history. */
export class MeshHttp {
  #base;
  #token;
  #refreshToken;
  #onTokens;
  #refreshing = null;

  /**
   * `refreshToken` trades itself for new tokens when `token` has expired; it is good for one use.
   * `onTokens` is told the new access and refresh token: save both, the old ones are done with.
   */
  constructor(url, token = "", { refreshToken = "", onTokens = () => {} } = {}) {
    this.#base = url.replace(/\/+$/, "") + PREFIX;
    this.#token = token;
    this.#refreshToken = refreshToken;
    this.#onTokens = onTokens;
  }

  /** Whether the gateway serves; needs no token. */
  health() {
    return this.#ask("GET", "/health");
  }

  /** `options` as in the reference: collections, filters, mode, require … */
  search(query, { limit = 10, ...options } = {}) {
    return this.#ask("POST", "/search", { query, limit, options });
  }

  /**
   * Run an action where `target` says: {node}, {nodes}, {all} or {collection}. The key makes it
   * safe to ask again when an answer was lost: the same key runs once.
   */
  action(action, params = {}, target = {}, key = randomUUID()) {
    return this.#ask("POST", "/actions", { action, params, ...target, idempotency_key: key });
  }

  /** Who ran what, newest first; node, action, caller, state, limit … */
  history(filters = {}) {
    return this.#ask("GET", `/actions?${new URLSearchParams(filters)}`);
  }

  /** Trade the refresh token for new tokens; requests that meet here share one trade. */
  refresh() {
    this.#refreshing ??= this.#trade().finally(() => {
      this.#refreshing = null;
    });
    return this.#refreshing;
  }

  // Never sent twice: a refresh token that comes a second time ends all tokens made from it.
  async #trade() {
    const body = { refresh_token: this.#refreshToken };
    const { status, answer } = await this.#send("POST", "/refresh-token", body, "");
    if (status !== 200) throw new MeshHttpError(status, answer);
    this.#token = answer.access_token;
    this.#refreshToken = answer.refresh_token;
    await this.#onTokens(this.#token, this.#refreshToken);
  }

  async #ask(method, path, body) {
    let renewed = !this.#refreshToken;
    for (let left = TRIES - 1; ; left--) {
      const used = this.#token;
      let { status, answer, retryAfterS } = await this.#send(method, path, body, used);
      if (status === 401 && !renewed) {
        renewed = true;
        if (used === this.#token) await this.refresh(); // else another request has done it
        ({ status, answer, retryAfterS } = await this.#send(method, path, body, this.#token));
      }
      if (status < 400) return answer;
      if ((status !== 429 && status !== 503) || left === 0) throw new MeshHttpError(status, answer);
      const pauseS = Math.min(retryAfterS, LONGEST_PAUSE_S);
      await new Promise((resolve) => setTimeout(resolve, pauseS * 1000));
    }
  }

  async #send(method, path, body, token) {
    const headers = { Accept: "application/json" };
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    const response = await fetch(this.#base + path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const retryAfterS = Number(response.headers.get("Retry-After") ?? 1) || 1; // or a proxy's date
    const text = await response.text();
    let answer;
    try {
      answer = JSON.parse(text);
    } catch (error) {
      if (response.ok) throw error;
      answer = { error: response.statusText, message: "no JSON" }; // a proxy's own page
    }
    return { status: response.status, answer, retryAfterS };
  }
}

async function main([command, ...rest]) {
  const client = new MeshHttp(
    process.env.MESH_HTTP_URL ?? "http://127.0.0.1:8080",
    process.env.MESH_TOKEN ?? "",
    { refreshToken: process.env.MESH_REFRESH_TOKEN ?? "" },
  );
  switch (command) {
    case "health":
      return client.health();
    case "search":
      return client.search(rest[0]);
    case "action": {
      const [node, action, params, key] = rest;
      return client.action(action, JSON.parse(params ?? "{}"), { node }, key);
    }
    case "history":
      return client.history(rest[0] ? { node: rest[0] } : {});
    default:
      throw new Error("give one of: health, search, action, history");
  }
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  try {
    console.log(JSON.stringify(await main(process.argv.slice(2)), null, 2));
  } catch (error) {
    console.error(`error: ${error.message}`);
    process.exitCode = 1;
  }
}
