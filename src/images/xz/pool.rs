//! The threads that decode: a fixed number, shared by all images.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{fmt, io, thread};

use tokio::sync::oneshot;

use super::memo::Memo;

/// Work for a thread. It is given the workshop to let others in between.
type Job = Box<dyn FnOnce(&Workshop) + Send>;

/// Dropping it ends the threads when the queued work is done.
pub(super) struct Pool {
    workshop: Arc<Workshop>,
    threads: usize,
    started: Mutex<usize>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}

/// The queues and the knowledge that the threads share.
pub(super) struct Workshop {
    queues: Mutex<Queues>,
    ready: Condvar,
    /// Blocks of zeros that they have decoded before.
    pub memo: Memo,
}

#[derive(Default)]
struct Queues {
    /// Whole blocks, tenths of a second each.
    blocks: VecDeque<Job>,
    /// Steps of plain streams, a few milliseconds each.
    steps: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// Threads are started when they are needed first.
    pub fn new(threads: usize) -> Self {
        Self {
            workshop: Arc::new(Workshop {
                queues: Mutex::default(),
                ready: Condvar::new(),
                memo: Memo::default(),
            }),
            threads: threads.max(1),
            started: Mutex::new(0),
        }
    }

    /// Starts the threads that are not there yet.
    ///
    /// # Errors
    ///
    /// The operating system has none left. One is enough to go on.
    pub fn start(&self) -> io::Result<()> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        while *started < self.threads {
            let workshop = self.workshop.clone();
            let thread = thread::Builder::new().name("decode".to_owned());
            match thread.spawn(move || workshop.work()) {
                Ok(_) => *started += 1,
                Err(error) if *started == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Queues a whole block.
    pub fn block(&self, job: impl FnOnce(&Workshop) + Send + 'static) {
        self.workshop.queues().blocks.push_back(Box::new(job));
        self.workshop.ready.notify_one();
    }

    /// Does a short piece of work; it need not wait until a whole block is decoded. `None` if it panicked.
    pub async fn step<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (sender, receiver) = oneshot::channel();
        let job = move |_: &Workshop| {
            // An abandoned image does not wait for it.
            let _ = sender.send(job());
        };
        self.workshop.queues().steps.push_back(Box::new(job));
        self.workshop.ready.notify_one();
        receiver.await.ok()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.workshop.queues().closed = true;
        self.workshop.ready.notify_all();
    }
}

impl Workshop {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a plain stream have its turn. Called between two chunks of a block, so that both get on.
    pub fn interlude(&self) {
        let step = self.queues().steps.pop_front();
        if let Some(step) = step {
            self.run(step);
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            self.run(job);
        }
    }

    /// A broken image must not take a thread with it.
    fn run(&self, job: Job) {
        // The panic hook has said what happened, and the task that waits for the job learns that it never ended.
        let _ = catch_unwind(AssertUnwindSafe(|| job(self)));
    }

    fn next(&self) -> Option<Job> {
        let mut queues = self.queues();
        loop {
            // Blocks first: they make way for steps.
            if let Some(job) = queues.blocks.pop_front() {
                return Some(job);
            }
            if let Some(job) = queues.steps.pop_front() {
                return Some(job);
            }
            if queues.closed {
                return None;
            }
            queues = self.ready.wait(queues).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_job_only() {
        let pool = Pool::new(1);
        pool.start().unwrap();
        assert_eq!(pool.step(|| panic!("expected by this test")).await, None::<()>);
        pool.block(|_| panic!("expected by this test"));
        let answer = tokio::time::timeout(Duration::from_secs(10), pool.step(|| 1)).await;
        assert_eq!(answer.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn a_step_comes_between_the_chunks_of_a_block() {
        let pool = Pool::new(1);
        pool.start().unwrap();
        let (sender, mut stepped) = oneshot::channel();
        let (result, outcome) = oneshot::channel();
        pool.block(move |workshop| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while stepped.try_recv().is_err() && std::time::Instant::now() < deadline {
                workshop.interlude();
            }
            result.send(std::time::Instant::now() < deadline).unwrap();
        });
        assert_eq!(pool.step(move || sender.send(()).is_ok()).await, Some(true));
        assert!(outcome.await.unwrap());
    }
}
