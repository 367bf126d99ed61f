//! Delivery in, acknowledgement out: the only place that settles a delivery.
//!
//! The loop reconnects for ever. Work goes on while the broker is away; only what an operator has to mend ends the
//! process, with the exit codes of the existing client.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::select_all;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use lapin::types::AMQPValue;

use crate::base::failure::{Chain, Disposition};
use crate::base::metrics;
use crate::base::retry::{Policy, Waits};
use crate::commands::monitoring::{Count, Health};
use crate::messaging::broker::{Broker, Error, Subscription};
use crate::messaging::message::{Intent, Message, Properties};
use crate::publish::work::{Held, Work};

/// A broker that keeps refusing us, or has no queue any more, gets this long before the process ends.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// What settles a delivery is written and has no answer. On a connection that breaks just then, the client library may wait
/// for ever; nothing else would be done meanwhile, not even for a signal.
const TOLD: Duration = Duration::from_secs(5);
/// A broker that says nothing does not hold up the end of the process.
const GOODBYE: Duration = Duration::from_secs(1);
/// Reconnecting never waits longer than this, so that a broker that is back is used soon.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Why the daemon ended.
#[derive(Debug)]
pub enum End {
    /// A signal.
    Stopped,
    /// The broker has to be mended first.
    Broker {
        /// The exit code.
        code: u8,
        /// What is wrong.
        error: Error,
    },
}

/// How a subscription ended.
enum Closed {
    Stopped,
    Lost,
    /// The broker cancelled the consumer: the queue is gone.
    Cancelled,
    /// An operator has to mend something first.
    Refused {
        code: u8,
        error: Error,
    },
}

/// Consumes until `stop` completes or the broker has to be mended.
pub async fn consume(
    broker: &Broker,
    work: &mut Work,
    health: &Arc<Health>,
    grace: Duration,
    stop: impl Future<Output = ()>,
) -> End {
    let mut stop = pin!(stop);
    let mut waits = forever();
    let mut epoch = 0;
    // Since when the broker refuses what it granted before.
    let mut refused_since: Option<Instant> = None;
    // Whether the broker ever let us consume.
    let mut consumed = false;
    let mut current = None;
    loop {
        epoch += 1;
        drop(current.take());
        let closed = tokio::select! {
            () = &mut stop => Closed::Stopped,
            subscribed = remember_during(work, broker.subscribe()) => match subscribed {
                Ok(Subscription {
                    channel,
                    consumers,
                    watch: _watch,
                }) => {
                    tracing::info!("consuming");
                    (waits, refused_since, consumed) = (forever(), None, true);
                    health.set_consuming(true);
                    let closed = serve(&channel, consumers, work, health, epoch, &mut stop).await;
                    health.set_consuming(false);
                    metrics::deliveries(0);
                    // Without a channel nothing can be settled.
                    current = Some(channel);
                    closed
                }
                Err(error) => {
                    let code = exit_code(&error, consumed);
                    // A broker that is away refuses nothing.
                    refused_since = code.map(|_| refused_since.unwrap_or_else(Instant::now));
                    let patient = consumed && refused_since.is_some_and(|since| since.elapsed() < QUEUE_PATIENCE);
                    health.set_broker_trouble(Chain(&error).to_string());
                    match code {
                        // At the start somebody is watching; later the broker may just be being mended.
                        Some(code) if !patient => Closed::Refused { code, error },
                        _ => {
                            tracing::warn!("failed to {}; trying again", Chain(&error));
                            Closed::Lost
                        }
                    }
                }
            },
        };
        match closed {
            Closed::Stopped => {
                stopped(broker, work, health, grace, epoch).await;
                return End::Stopped;
            }
            Closed::Refused { code, error } => {
                tokio::select! {
                    () = &mut stop => stopped(broker, work, health, grace, epoch).await,
                    () = finish(work, health, epoch) => {}
                }
                return End::Broker { code, error };
            }
            Closed::Lost => {}
            Closed::Cancelled => {
                tracing::warn!("the broker cancelled the consumer: the queue was deleted");
                health.set_broker_trouble("the queue was deleted".to_owned());
            }
        }
        let wait = waits
            .after(crate::base::failure::Class::TRANSIENT)
            .unwrap_or(LONGEST_WAIT);
        tokio::select! {
            () = &mut stop => {
                stopped(broker, work, health, grace, epoch).await;
                return End::Stopped;
            }
            () = remember_during(work, tokio::time::sleep(wait)) => {}
        }
    }
}

fn forever() -> Waits {
    Policy {
        longest: LONGEST_WAIT,
        give_up_after: Duration::MAX,
    }
    .start("subscribe")
}

/// The exit code for what an operator has to mend; `None` for what passes.
fn exit_code(error: &Error, consumed: bool) -> Option<u8> {
    match error {
        Error::Certificate { .. } => Some(2),
        Error::Declare { .. } | Error::Bind { .. } if !error.is_lost_connection() => {
            Some(if consumed { 12 } else { 10 })
        }
        Error::Refused { .. } => Some(14),
        Error::Consume { .. } if !error.is_lost_connection() => Some(15),
        Error::Away { .. }
        | Error::Silent { .. }
        | Error::Channel(_)
        | Error::Declare { .. }
        | Error::Bind { .. }
        | Error::Consume { .. }
        | Error::Publish { .. }
        | Error::Forbidden { .. }
        | Error::Rejected { .. }
        | Error::Unconfirmed { .. } => None,
    }
}

/// Waits for `other`. Outcomes of work that ends meanwhile, while nothing can be settled, are kept for the messages that
/// come back.
async fn remember_during<T>(work: &mut Work, other: impl Future<Output = T>) -> T {
    let mut other = pin!(other);
    loop {
        tokio::select! {
            output = &mut other => return output,
            finished = work.next() => work.remember(finished.compose, finished.disposition),
        }
    }
}

/// Takes deliveries and settles those whose work has ended, until the subscription ends.
async fn serve(
    channel: &Channel,
    consumers: Vec<lapin::Consumer>,
    work: &mut Work,
    health: &Health,
    epoch: u64,
    stop: &mut (impl Future<Output = ()> + Unpin),
) -> Closed {
    let tags: Vec<_> = consumers.iter().map(lapin::Consumer::tag).collect();
    // A consumer's stream ends when the broker cancels it, and the others' do not.
    let ends = consumers
        .into_iter()
        .map(|consumer| consumer.map(Some).chain(futures_util::stream::iter([None])));
    let mut deliveries = select_all(ends.map(Box::pin));
    loop {
        metrics::deliveries(work.held(epoch));
        tokio::select! {
            () = &mut *stop => {
                for tag in tags {
                    // A channel that is gone, or says nothing, has nothing to cancel.
                    let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
                    let _ = tokio::time::timeout(GOODBYE, cancelled).await;
                }
                return Closed::Stopped;
            }
            finished = work.next() => {
                let mut settled = false;
                for held in &finished.held {
                    settled |= held.epoch == epoch && settle(&held.delivery, finished.disposition, health).await;
                }
                if !settled {
                    work.remember(finished.compose, finished.disposition);
                }
            }
            delivery = deliveries.next() => match delivery {
                Some(Some(Ok(delivery))) => receive(delivery, work, health, epoch).await,
                Some(Some(Err(error))) => {
                    tracing::warn!("lost the broker: {}", Chain(&error));
                    health.set_broker_trouble(format!("the broker is gone: {}", Chain(&error)));
                    return Closed::Lost;
                }
                Some(None) | None if channel.status().connected() => return Closed::Cancelled,
                Some(None) | None => return Closed::Lost,
            },
        }
    }
}

/// Settles at once what concerns nobody; everything else joins the work on its compose.
async fn receive(delivery: Delivery, work: &mut Work, health: &Health, epoch: u64) {
    health.count(Count::Received);
    let id = delivery
        .properties
        .message_id()
        .as_ref()
        .map_or_else(String::new, |id| id.as_str().escape_debug().to_string());
    match wish(&delivery) {
        Ok(Intent::Nothing(reason)) => {
            tracing::debug!(id, "nothing to do: {reason}");
            metrics::ignored();
            settle(&delivery, Disposition::Ack, health).await;
        }
        Ok(Intent::Publish(request)) => {
            let compose = request.compose.to_string();
            tracing::info!(
                id,
                compose,
                redelivered = delivery.redelivered,
                "message {id}: {compose} has finished"
            );
            let redelivered = delivery.redelivered;
            if let Some((held, disposition)) = work.join(request, Held { delivery, epoch }, redelivered) {
                settle(&held.delivery, disposition, health).await;
            }
        }
        Err(error) => {
            metrics::invalid();
            tracing::error!(id, "dropped message {id:?}: failed to {}", Chain(&error));
            settle(&delivery, Disposition::Drop, health).await;
        }
    }
}

fn wish(delivery: &Delivery) -> Result<Intent, crate::messaging::message::Error> {
    let severity = delivery.properties.headers().as_ref().and_then(|headers| {
        match headers.inner().get("fedora_messaging_severity")? {
            AMQPValue::ShortShortInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortShortUInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortUInt(value) => Some(i64::from(*value)),
            AMQPValue::LongInt(value) => Some(i64::from(*value)),
            AMQPValue::LongUInt(value) => Some(i64::from(*value)),
            AMQPValue::LongLongInt(value) => Some(*value),
            // Another type is as good as none: the existing client tolerates what is missing.
            _ => None,
        }
    });
    let sent_at = delivery
        .properties
        .headers()
        .as_ref()
        .and_then(|headers| match headers.inner().get("sent-at")? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            _ => None,
        });
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|text| text.as_str().to_owned());
    let (message_id, encoding) = (
        text(delivery.properties.message_id()),
        text(delivery.properties.content_encoding()),
    );
    let properties = Properties {
        message_id: message_id.as_deref(),
        content_encoding: encoding.as_deref(),
        severity,
        sent_at,
    };
    Message::of_delivery(delivery.routing_key.as_str(), &properties, &delivery.data)?.wish(None)
}

/// Whether the broker was told; if not, it delivers the message again.
async fn settle(delivery: &Delivery, disposition: Disposition, health: &Health) -> bool {
    let nack = |requeue| {
        delivery.nack(BasicNackOptions {
            multiple: false,
            requeue,
        })
    };
    let telling = async {
        match disposition {
            Disposition::Ack => (Count::Processed, delivery.ack(BasicAckOptions::default()).await),
            Disposition::Drop => (Count::Dropped, nack(false).await),
            Disposition::Requeue => (Count::Rejected, nack(true).await),
        }
    };
    let Ok((count, outcome)) = tokio::time::timeout(TOLD, telling).await else {
        tracing::warn!("a delivery could not be settled and will come again: the broker takes nothing");
        return false;
    };
    match outcome {
        Ok(true) => {
            health.count(count);
            true
        }
        Ok(false) => false,
        Err(error) => {
            tracing::warn!("a delivery could not be settled and will come again: {}", Chain(&error));
            false
        }
    }
}

/// Waits for the work in hand, whose images would otherwise have to be begun again.
async fn finish(work: &mut Work, health: &Health, epoch: u64) {
    while !work.is_empty() {
        let finished = work.next().await;
        for held in finished.held.iter().filter(|held| held.epoch == epoch) {
            settle(&held.delivery, finished.disposition, health).await;
        }
    }
}

/// Takes nothing new, gives the work in hand `grace` to end, and leaves the rest to redelivery.
async fn stopped(broker: &Broker, work: &mut Work, health: &Health, grace: Duration, epoch: u64) {
    work.stop_resting();
    if !work.is_empty() {
        tracing::info!(composes = work.len(), "stopping: waiting for the work in hand");
        // Running out of time is the normal way to end with large images.
        let _ = tokio::time::timeout(grace, finish(work, health, epoch)).await;
    }
    work.abandon();
    // The broker notices by itself, too.
    let _ = tokio::time::timeout(GOODBYE, broker.close()).await;
}
