// How many jobs a second BullMQ adds, processes and completes: node rate.js REDIS_URL JOBS
// One line for each setting; the rate is the last word. Jobs do nothing, finished ones are removed, adding is in bulk.
import { Queue, Worker } from 'bullmq';
import Redis from 'ioredis';

const [url, count] = [process.argv[2], Number(process.argv[3])];
const open = () => new Redis(url, { maxRetriesPerRequest: null });

async function measure(concurrency, workers) {
  const name = `bench-${concurrency}-${workers}`;
  const queue = new Queue(name, { connection: open() });
  await queue.waitUntilReady();
  let done = 0;
  let finished;
  const all = new Promise((resolve) => { finished = resolve; });
  const jobs = Array.from({ length: count }, (_, number) => ({
    name: 'task',
    data: { number, source_bytes: 1000000000 },
    opts: { removeOnComplete: true, removeOnFail: true },
  }));
  const crew = Array.from({ length: workers }, () => new Worker(name, async () => ({ files_packed: 1000 }), {
    connection: open(), concurrency, autorun: false,
  }));
  for (const worker of crew) {
    worker.on('completed', () => { done += 1; if (done === count) finished(); });
    await worker.waitUntilReady();
  }
  const start = process.hrtime.bigint();
  for (let from = 0; from < count; from += 1000) await queue.addBulk(jobs.slice(from, from + 1000));
  for (const worker of crew) worker.run();
  await all;
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  await Promise.all(crew.map((worker) => worker.close()));
  await queue.obliterate({ force: true });
  await queue.close();
  console.log(`${workers} worker${workers > 1 ? 's' : ''} of concurrency ${concurrency}: ${(count / seconds).toFixed(0)}`);
}

for (const [concurrency, workers] of [[16, 1], [64, 1], [256, 1], [64, 4]]) await measure(concurrency, workers);
process.exit(0);
