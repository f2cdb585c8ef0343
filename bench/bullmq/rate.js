// How many jobs a second BullMQ adds, processes and completes: node rate.js REDIS_URL JOBS
// One line for each setting; its last words are the rate, and what the server's processor spent on a job in microseconds.
// Jobs do nothing, finished ones are removed, adding is in bulk. A worker's next job comes with the completion of the last.
import { fork } from 'node:child_process';
import { Queue, Worker } from 'bullmq';
import Redis from 'ioredis';

const [url, count, name, share, workers] = process.argv.slice(2);
const open = () => new Redis(url, { maxRetriesPerRequest: null });

// Workers in this process. Says when they are ready, and when a word comes, sets them to work.
async function crew(name, concurrency, workers, completed) {
  const crew = Array.from({ length: workers }, () => new Worker(name, async () => ({ files_packed: 1000 }), {
    connection: open(), concurrency, autorun: false,
  }));
  for (const worker of crew) {
    worker.on('completed', completed);
    worker.on('error', () => {});
    await worker.waitUntilReady();
  }
  return crew;
}

if (name) {
  const team = await crew(name, Number(share), Number(workers), () => {});
  process.on('message', async (word) => {
    if (word === 'run') team.forEach((worker) => worker.run());
    else {
      await Promise.all(team.map((worker) => worker.close()));
      process.exit(0);
    }
  });
  process.send('ready');
} else {
  // Concurrency of a worker, workers of a process, processes; 0: in the process that adds.
  for (const setting of [[16, 1, 0], [64, 1, 0], [256, 1, 0], [64, 4, 0], [64, 1, 1], [64, 1, 2], [256, 1, 2]]) {
    await measure(...setting);
  }
  process.exit(0);
}

async function spent(connection) {
  const text = await connection.info('cpu');
  const number = (name) => Number(text.split(`${name}:`)[1].split('\r')[0]);
  return (number('used_cpu_sys_main_thread') + number('used_cpu_user_main_thread')) * 1e6;
}

async function measure(concurrency, workers, processes) {
  const name = `bench-${concurrency}-${workers}-${processes}`;
  const connection = open();
  const queue = new Queue(name, { connection });
  await queue.waitUntilReady();
  const total = Number(count);
  let done = 0;
  let finished;
  const all = new Promise((resolve) => { finished = resolve; });
  const jobs = Array.from({ length: total }, (_, number) => ({
    name: 'task',
    data: { number, source_bytes: 1000000000 },
    opts: { removeOnComplete: true, removeOnFail: true },
  }));
  let here = [];
  const others = [];
  if (processes === 0) {
    here = await crew(name, concurrency, workers, () => { done += 1; if (done === total) finished(); });
  }
  for (let n = 0; n < processes; n += 1) {
    const other = fork(process.argv[1], [url, count, name, String(concurrency), String(workers)]);
    await new Promise((resolve) => { other.once('message', resolve); });
    others.push(other);
  }
  const before = await spent(connection);
  const start = process.hrtime.bigint();
  for (let from = 0; from < total; from += 1000) await queue.addBulk(jobs.slice(from, from + 1000));
  here.forEach((worker) => worker.run());
  others.forEach((other) => other.send('run'));
  if (processes > 0) {
    const left = async () => {
      const { wait, active } = await queue.getJobCounts('wait', 'active');
      return wait + active;
    };
    while (await left() > 0) await new Promise((resolve) => { setTimeout(resolve, 2); });
  } else await all;
  const seconds = Number(process.hrtime.bigint() - start) / 1e9;
  const micros = (await spent(connection) - before) / total;
  await Promise.all(here.map((worker) => worker.close()));
  await Promise.all(others.map((other) => new Promise((resolve) => {
    other.once('exit', resolve);
    other.send('end');
  })));
  await queue.obliterate({ force: true });
  await queue.close();
  const where = processes === 0 ? 'in the process that adds' : `in each of ${processes} further processes`;
  console.log(`${workers} worker(s) of concurrency ${concurrency} ${where}: ${(total / seconds).toFixed(0)} ${micros.toFixed(1)}`);
}
