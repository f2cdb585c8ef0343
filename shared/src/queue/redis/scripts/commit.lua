-- ARGV: job, number, token, totals 'a,b,c,d'.
return commit(ARGV[1], ARGV[2], ARGV[3], ARGV[4]) or { 'ok' }
