/** An error as a problem document (RFC 9457), as moltinit itself answers. */
export function problem(status: number, title: string, detail?: string, headers: HeadersInit = {}): Response {
  const answer = Response.json({ title, status, detail }, { status, headers });
  answer.headers.set("Content-Type", "application/problem+json");
  return answer;
}
