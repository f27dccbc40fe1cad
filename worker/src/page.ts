/** A page of our own: its one script and its one style run, and nothing that finds its way into it does. */
export function page(html: string, status = 200): Response {
  const nonce = crypto.randomUUID();
  const marked = html.replace("<script>", `<script nonce="${nonce}">`).replace("<style>", `<style nonce="${nonce}">`);
  return new Response(marked, {
    status,
    headers: {
      "Content-Type": "text/html; charset=utf-8",
      "Cache-Control": "no-store",
      "Content-Security-Policy": `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`,
      "Referrer-Policy": "no-referrer",
      "X-Content-Type-Options": "nosniff",
    },
  });
}
