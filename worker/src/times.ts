/** How long things last, in milliseconds. In one place, so that a test can be quicker than life. */
export const times = {
  /** An answer of the container's probes is good enough for the next request. */
  probe: 1_000,
  /** Between two attempts to mount the bucket. */
  mountGap: 5_000,
  /** A mount that is there but that moltinit cannot use is given so long to come to itself. */
  mountGrace: 30_000,
  /** Without an answer of moltinit's `/healthz` for so long, the container is beyond help. */
  silence: 180_000,
};
