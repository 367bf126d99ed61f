//! Delivery in, acknowledgement out: the only place that settles a delivery.
//!
//! The loop reconnects without end. Work goes on while the broker is away; only an [`Obstacle`] that an operator has to fix ends
//! the daemon. The work itself is behind [`Jobs`]: this module knows nothing of publishing.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::select_all;
use lapin::Channel;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use lapin::types::AMQPValue;

use crate::base::failure::{Chain, Class, Disposition};
use crate::base::health::{Count, Health, Trouble};
use crate::base::metrics;
use crate::base::retry::{Policy, Waits};
use crate::messaging::broker::{Broker, Error, Subscription};
use crate::messaging::jobs::Jobs;
use crate::messaging::message::{Intent, Message, Properties};

/// A broker that keeps refusing this client, or has no queue any more, gets this long before the process ends.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Limits the settling of one delivery. An acknowledgement is written and has no answer. On a connection that breaks just
/// then, the client library may wait without end; nothing else would be done meanwhile, not even for a signal.
const SETTLING: Duration = Duration::from_secs(5);
/// Limits the farewell to the broker: a silent one must not hold up the end of the process.
const GOODBYE: Duration = Duration::from_secs(1);
/// The longest wait before reconnecting, so that a broker that is back is used soon.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A delivery that waits for the work on its compose.
#[derive(Debug)]
pub struct Unsettled {
    /// Of no use once its channel is closed; the broker delivers the message again then.
    delivery: Delivery,
    /// The number of the subscription that it came from.
    epoch: u64,
}

/// What keeps the daemon from consuming until an operator fixes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// A certificate or key that cannot be used.
    Certificate,
    /// A queue or binding that could not be declared.
    NotDeclared,
    /// A queue that was deleted while the daemon consumed, and is not back.
    QueueGone,
    /// A refused TLS or AMQP handshake.
    HandshakeRefused,
    /// No permission to read the queue.
    ReadForbidden,
}

/// Why the daemon ended.
#[derive(Debug)]
pub enum End {
    /// A signal.
    Stopped,
    /// An operator has to fix the broker first.
    Broker {
        /// What an operator has to fix.
        obstacle: Obstacle,
        /// The broker's refusal.
        error: Error,
    },
}

/// How a subscription ended.
enum Closed {
    Stopped,
    Lost,
    /// The broker cancelled the consumer: the queue is gone.
    Cancelled,
    /// An operator has to fix something first.
    Refused {
        obstacle: Obstacle,
        error: Error,
    },
}

/// Consumes until `stop` completes or an operator has to fix the broker.
pub async fn consume(
    broker: &Broker,
    work: &mut impl Jobs<Unsettled>,
    health: &Health,
    grace: Duration,
    stop: impl Future<Output = ()>,
) -> End {
    let mut stop = pin!(stop);
    let mut waits = reconnect_backoff();
    let mut epoch = 0;
    // The start of the broker's refusal of permissions that it granted before.
    let mut refused_since: Option<Instant> = None;
    // True once the broker granted consuming.
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
                    (waits, refused_since, consumed) = (reconnect_backoff(), None, true);
                    health.set_consuming(true);
                    let closed = serve(&channel, consumers, work, health, epoch, &mut stop).await;
                    health.set_consuming(false);
                    metrics::deliveries(0);
                    // Without a channel nothing can be settled.
                    current = Some(channel);
                    closed
                }
                Err(error) => {
                    let obstacle = obstacle(&error, consumed);
                    // A broker that is away refuses nothing.
                    refused_since = obstacle.map(|_| refused_since.unwrap_or_else(Instant::now));
                    let patient = consumed && refused_since.is_some_and(|since| since.elapsed() < QUEUE_PATIENCE);
                    health.set_trouble(Trouble::Broker, Some(Chain(&error).to_string()));
                    match obstacle {
                        // At the start an operator is watching; later one may be fixing the broker already.
                        Some(obstacle) if !patient => Closed::Refused { obstacle, error },
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
                drain(broker, work, health, grace, epoch).await;
                return End::Stopped;
            }
            Closed::Refused { obstacle, error } => {
                tokio::select! {
                    () = &mut stop => drain(broker, work, health, grace, epoch).await,
                    () = finish(work, health, epoch) => {}
                }
                return End::Broker { obstacle, error };
            }
            Closed::Lost => {}
            Closed::Cancelled => {
                tracing::warn!("the broker cancelled the consumer: the queue was deleted");
                health.set_trouble(Trouble::Broker, Some("the queue was deleted".to_owned()));
            }
        }
        let wait = waits.after(Class::TRANSIENT).unwrap_or(LONGEST_WAIT);
        tokio::select! {
            () = &mut stop => {
                drain(broker, work, health, grace, epoch).await;
                return End::Stopped;
            }
            () = remember_during(work, tokio::time::sleep(wait)) => {}
        }
    }
}

/// Reconnecting is never given up.
fn reconnect_backoff() -> Waits {
    Policy {
        longest: LONGEST_WAIT,
        give_up_after: Duration::MAX,
    }
    .start("subscribe")
}

/// The obstacle that an error shows; `None` for a transient one.
fn obstacle(error: &Error, consumed: bool) -> Option<Obstacle> {
    match error {
        Error::Certificate { .. } => Some(Obstacle::Certificate),
        Error::Declare { .. } | Error::Bind { .. } if !error.is_lost_connection() => Some(if consumed {
            Obstacle::QueueGone
        } else {
            Obstacle::NotDeclared
        }),
        Error::Refused { .. } => Some(Obstacle::HandshakeRefused),
        Error::Consume { .. } if !error.is_lost_connection() => Some(Obstacle::ReadForbidden),
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
async fn remember_during<T>(work: &mut impl Jobs<Unsettled>, other: impl Future<Output = T>) -> T {
    let mut other = pin!(other);
    loop {
        tokio::select! {
            output = &mut other => return output,
            ended = work.next() => work.remember(ended.subjects, ended.disposition),
        }
    }
}

/// Takes deliveries and settles those whose work has ended, until the subscription ends.
async fn serve(
    channel: &Channel,
    consumers: Vec<lapin::Consumer>,
    work: &mut impl Jobs<Unsettled>,
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
        metrics::deliveries(work.tickets().filter(|ticket| ticket.epoch == epoch).count());
        tokio::select! {
            () = &mut *stop => {
                for tag in tags {
                    // A channel that is gone, or says nothing, has nothing to cancel.
                    let cancelled = channel.basic_cancel(tag, BasicCancelOptions::default());
                    let _ = tokio::time::timeout(GOODBYE, cancelled).await;
                }
                return Closed::Stopped;
            }
            ended = work.next() => {
                let mut settled = false;
                for ticket in &ended.tickets {
                    settled |= ticket.epoch == epoch && settle(&ticket.delivery, ended.disposition, health).await;
                }
                if !settled {
                    work.remember(ended.subjects, ended.disposition);
                }
            }
            delivery = deliveries.next() => match delivery {
                Some(Some(Ok(delivery))) => receive(delivery, work, health, epoch).await,
                Some(Some(Err(error))) => {
                    tracing::warn!("lost the broker: {}", Chain(&error));
                    health.set_trouble(Trouble::Broker, Some(format!("the broker is gone: {}", Chain(&error))));
                    return Closed::Lost;
                }
                Some(None) | None if channel.status().connected() => return Closed::Cancelled,
                Some(None) | None => return Closed::Lost,
            },
        }
    }
}

/// Settles irrelevant and invalid messages at once; every other one joins the work on its compose.
async fn receive(delivery: Delivery, work: &mut impl Jobs<Unsettled>, health: &Health, epoch: u64) {
    health.count(Count::Received);
    let id = delivery
        .properties
        .message_id()
        .as_ref()
        .map_or_else(String::new, |id| id.as_str().escape_debug().to_string());
    match intent(&delivery) {
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
            if let Some((ticket, disposition)) = work.join(request, Unsettled { delivery, epoch }, redelivered) {
                settle(&ticket.delivery, disposition, health).await;
            }
        }
        Err(error) => {
            metrics::invalid();
            tracing::error!(id, "dropped message {id:?}: failed to {}", Chain(&error));
            settle(&delivery, Disposition::Drop, health).await;
        }
    }
}

fn intent(delivery: &Delivery) -> Result<Intent, crate::messaging::message::Error> {
    let severity = delivery.properties.headers().as_ref().and_then(|headers| {
        match headers.inner().get("fedora_messaging_severity")? {
            AMQPValue::ShortShortInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortShortUInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortInt(value) => Some(i64::from(*value)),
            AMQPValue::ShortUInt(value) => Some(i64::from(*value)),
            AMQPValue::LongInt(value) => Some(i64::from(*value)),
            AMQPValue::LongUInt(value) => Some(i64::from(*value)),
            AMQPValue::LongLongInt(value) => Some(*value),
            // A header of another type counts as missing, which the existing client tolerates.
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

/// Settles a delivery. If that fails (`false`), the broker delivers the message again.
async fn settle(delivery: &Delivery, disposition: Disposition, health: &Health) -> bool {
    let nack = |requeue| {
        delivery.nack(BasicNackOptions {
            multiple: false,
            requeue,
        })
    };
    let settling = async {
        match disposition {
            Disposition::Ack => (Count::Processed, delivery.ack(BasicAckOptions::default()).await),
            Disposition::Drop => (Count::Dropped, nack(false).await),
            Disposition::Requeue => (Count::Rejected, nack(true).await),
        }
    };
    let Ok((count, outcome)) = tokio::time::timeout(SETTLING, settling).await else {
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

/// Waits for the work in hand, whose images would otherwise have to be started again.
async fn finish(work: &mut impl Jobs<Unsettled>, health: &Health, epoch: u64) {
    while !work.is_empty() {
        let ended = work.next().await;
        for ticket in ended.tickets.iter().filter(|ticket| ticket.epoch == epoch) {
            settle(&ticket.delivery, ended.disposition, health).await;
        }
    }
}

/// Takes nothing new, gives the work in hand `grace` to end, and leaves the rest to redelivery.
async fn drain(broker: &Broker, work: &mut impl Jobs<Unsettled>, health: &Health, grace: Duration, epoch: u64) {
    work.stop();
    if !work.is_empty() {
        tracing::info!(composes = work.len(), "stopping: waiting for the work in hand");
        // With large images, running out of time is the normal end.
        let _ = tokio::time::timeout(grace, finish(work, health, epoch)).await;
    }
    work.abandon();
    // The broker notices by itself, too.
    let _ = tokio::time::timeout(GOODBYE, broker.close()).await;
}
