"""Words everybody uses: ids, errors, time, events, the supervision tree."""
