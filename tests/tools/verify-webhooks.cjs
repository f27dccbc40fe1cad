// Verifies what a receiver printed (one JSON line a request, on stdin) with the published Standard Webhooks library.
// The first argument is the secret; node_modules is found through NODE_PATH. Prints how many requests verified.
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.argv[2]);
const lines = require("fs").readFileSync(0, "utf8").split("\n").filter(Boolean);
for (const line of lines) {
  const { headers, body } = JSON.parse(line);
  webhook.verify(body, headers);
  let refused = false;
  try {
    webhook.verify(body + " ", headers);
  } catch {
    refused = true;
  }
  if (!refused) throw new Error("a changed body verified");
}
console.log(lines.length);
