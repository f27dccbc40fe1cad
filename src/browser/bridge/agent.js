// Runs in the page, once for each command that needs objects of the page: what it returns is a string of JSON.
// Objects that a client holds on to are kept here under numbers; `doc` tells one document from the next.
(async (call) => {
  const key = Symbol.for("moltinit");
  const kept = globalThis[key] ?? (() => {
    const kept = { doc: Math.random().toString(36).slice(2), objects: new Map(), next: 1, logs: [], opens: 0 };
    Object.defineProperty(globalThis, key, { value: kept });
    for (const type of ["debug", "log", "info", "warn", "error"]) {
      const original = console[type];
      console[type] = (...args) => {
        const plain = (value) => (Object(value) === value || typeof value === "symbol" ? String(value) : value);
        if (kept.logs.length < 100) kept.logs.push([type, args.map((value) => remote(plain(value), false))]);
        return original.apply(console, args);
      };
    }
    const open = Document.prototype.open;
    Document.prototype.open = function (...args) {
      kept.opens++;
      return open.apply(this, args);
    };
    return kept;
  })();
  const subtype = (value) =>
    value instanceof Node ? "node"
      : Array.isArray(value) ? "array"
      : value instanceof Promise ? "promise"
      : value instanceof Error ? "error"
      : { Date: "date", RegExp: "regexp", Map: "map", Set: "set" }[value.constructor?.name];
  const keep = (value) => {
    kept.objects.set(kept.next, value);
    return `${kept.doc}.${kept.next++}`;
  };
  function remote(value, byValue) {
    const type = typeof value;
    if (value === undefined) return { type };
    if (value === null) return { type, subtype: "null", value };
    const odd = type === "bigint" ? `${value}n` : Object.is(value, -0) ? "-0" : String(value);
    if (type === "bigint" || (type === "number" && (!Number.isFinite(value) || Object.is(value, -0))))
      return { type, unserializableValue: odd, description: odd };
    // Nor do browsers describe what says it all.
    if (type === "string" || type === "boolean") return { type, value };
    if (type === "number") return { type, value, description: odd };
    if (byValue) return { type, value: type === "object" ? value : {} };
    const className = value.constructor?.name ?? "Object";
    const description = value instanceof Error ? value.stack ?? String(value) : className;
    return { type, subtype: subtype(value), className, description, objectId: keep(value) };
  }
  const lost = () => {
    throw { protocol: "Cannot find context with specified id" };
  };
  const object = (id) => {
    const [doc, number] = String(id).split(".");
    return doc === kept.doc && kept.objects.has(+number) ? kept.objects.get(+number) : lost();
  };
  const argument = (given) => {
    if ("objectId" in given) return object(given.objectId);
    const odd = given.unserializableValue;
    return odd === undefined ? given.value : odd.endsWith("n") ? BigInt(odd.slice(0, -1)) : Number(odd);
  };
  const quad = ({ left, top, right, bottom }) => [left, top, right, top, right, bottom, left, bottom];
  const node = (value) => (value instanceof Node ? value : value?.documentElement ?? lost());
  const run = {
    state: () => ({}),
    async value({ expression, declaration, self, args, awaited, byValue }) {
      let value;
      try {
        // Before anything is awaited: until then the page's policy on eval does not count.
        if (expression !== undefined) value = (0, eval)(expression);
        else value = (0, eval)(`(${declaration}\n)`).apply(self && object(self), args.map(argument));
        if (awaited) value = await value;
        return { result: remote(value, byValue) };
      } catch (error) {
        if (error?.protocol) throw error;
        const exception = remote(error, false);
        const details = { exceptionId: 1, text: "Uncaught", lineNumber: 0, columnNumber: 0, exception };
        return { result: exception, exceptionDetails: details };
      }
    },
    properties({ objectId }) {
      const of = object(objectId);
      const result = Reflect.ownKeys(of).filter((name) => typeof name === "string").map((name) => {
        const { value, writable, get, configurable, enumerable } = Object.getOwnPropertyDescriptor(of, name);
        return { name, value: remote(get ? undefined : value, false), writable, configurable, enumerable, isOwn: true };
      });
      return { result };
    },
    release({ objectId }) {
      kept.objects.delete(+String(objectId).split(".")[1]);
      return {};
    },
    node({ objectId }) {
      const value = object(objectId);
      const attributes = [...(value.attributes ?? [])].flatMap(({ name, value }) => [name, value]);
      const { nodeType, nodeName, nodeValue, localName } = node(value);
      const backendNodeId = +objectId.split(".")[1];
      const childNodeCount = value.childNodes.length;
      return { node: { nodeId: backendNodeId, backendNodeId, nodeType, nodeName, nodeValue: nodeValue ?? "",
        localName: localName ?? "", childNodeCount, attributes } };
    },
    resolve({ backendNodeId }) {
      return { object: remote(object(`${kept.doc}.${backendNodeId}`), false) };
    },
    scroll({ objectId }) {
      node(object(objectId)).scrollIntoViewIfNeeded?.();
      return {};
    },
    quads({ objectId }) {
      const rects = [...node(object(objectId)).getClientRects()].filter(({ width, height }) => width && height);
      return { quads: rects.map(quad) };
    },
    box({ objectId }) {
      const rect = node(object(objectId)).getBoundingClientRect();
      const all = quad(rect);
      return { model: { content: all, padding: all, border: all, margin: all, width: rect.width, height: rect.height } };
    },
    focus({ objectId }) {
      object(objectId).focus();
      return {};
    },
    content({ html }) {
      document.open();
      document.write(html);
      document.close();
      return {};
    },
    metrics() {
      const { clientWidth, clientHeight, scrollWidth, scrollHeight } = document.scrollingElement ?? document.documentElement;
      const [pageX, pageY] = [scrollX, scrollY];
      const layout = { pageX, pageY, clientWidth, clientHeight };
      const visual = { ...layout, offsetX: 0, offsetY: 0, scale: 1, zoom: 1 };
      const content = { x: 0, y: 0, width: scrollWidth, height: scrollHeight };
      return { layoutViewport: layout, visualViewport: visual, contentSize: content,
        cssLayoutViewport: layout, cssVisualViewport: visual, cssContentSize: content };
    },
  };
  let answer;
  try {
    answer = { result: await run[call.op](call) };
  } catch (error) {
    answer = { error: { code: -32000, message: error?.protocol ?? String(error) } };
  }
  const { doc, opens } = kept;
  const state = { doc, opens, url: location.href, title: document.title, ready: document.readyState };
  return JSON.stringify({ ...answer, state: { ...state, logs: kept.logs.splice(0) } });
})
