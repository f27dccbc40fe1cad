//! The one connection: from the dial to its end.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, Stream, StreamExt};
use reqwest::Upgraded;
use serde_json::Value;
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout, timeout_at},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        protocol::{CloseFrame, Role, frame::coding::CloseCode},
    },
};

use super::{
    Ask, Down, Farewell, Hub, Seat,
    apart::Apart,
    budget::{Budget, Share},
    core::{Core, Out},
    far::{Far, Up, cut, write},
    limits, part,
    text::part_with,
};
use crate::{
    browser::{
        bridge::{self, Greeting, TICK, greet},
        pulse::{LOOK_EVERY, Watch, Watched},
        relay::Broken,
        upstream::{BROWSER_PATH, DIAL, DialError},
        version::Version,
    },
    event::Event,
};

/// A client that takes nothing for so long, while others wait for it, is closed.
pub const STALLED: Duration = Duration::from_secs(10);

/// Why a connection ended.
enum Ended {
    /// Nobody was there any more.
    Unused,
    /// A client has closed the browser.
    Over,
    /// The browser's side has said goodbye.
    Goodbye(Option<CloseFrame>),
    Failed(DialError),
    Broken(Broken),
}

struct Run {
    hub: Arc<Hub>,
    asked: UnboundedReceiver<Ask>,
    core: Core,
    seats: BTreeMap<u64, Seat>,
    own: HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    far: Far,
    /// The pulse of the browser's side.
    watch: Option<Watch>,
    /// What is said before it is known to whom.
    held: VecDeque<Out>,
    up: UnboundedSender<Up>,
    /// Of what clients are told.
    budget: Budget,
    /// Who came and was not let in yet.
    comers: Arc<AtomicUsize>,
    /// When somebody last wanted something.
    used: Instant,
}

pub async fn run(hub: Arc<Hub>, asked: UnboundedReceiver<Ask>, comers: Arc<AtomicUsize>) {
    let (up, queue) = unbounded_channel();
    let mut run = Run {
        hub,
        asked,
        core: Core::default(),
        seats: BTreeMap::new(),
        own: HashMap::new(),
        far: Far::Unknown,
        watch: None,
        held: VecDeque::new(),
        up,
        budget: Budget::default(),
        comers,
        used: Instant::now(),
    };
    let ended = run.live(queue).await;
    run.end(&ended).await;
}

impl Run {
    async fn live(&mut self, mut queue: UnboundedReceiver<Up>) -> Ended {
        let (upgraded, greeting) = match self.dial().await {
            Ok(dialled) => dialled,
            Err(ended) => return ended,
        };
        let upstream = &self.hub.upstream;
        self.hub.events.emit(Event::BrowserConnected {
            upstream: upstream.name(),
        });
        let mut first = None;
        self.far = match greeting {
            Greeting::Browser(version) => {
                upstream.remember(Version::of_result(&version));
                Far::Browser
            }
            Greeting::Shim(said) => {
                first = Some(said);
                Far::Shim(Box::default())
            }
        };
        self.hub.came_up();
        let (upgraded, watch) = Watched::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(Apart::new(upgraded, &[]), Role::Client, Some(limits())).await;
        let (mut sink, mut stream) = socket.split();
        self.watch = Some(watch.clone());
        let ended = tokio::select! {
            ended = self.serve(first, &mut stream) => ended.unwrap_or_else(|ended| ended),
            broken = write(&mut sink, &mut queue) => Ended::Broken(broken),
            () = watch.ends(|pulse, now| pulse.is_silent(now) || pulse.is_stuck(now)) => Ended::Broken(Broken::Silent),
        };
        if let Ok(mut socket) = sink.reunite(stream) {
            let goodbye = Farewell::new(1001, "nobody uses it").frame();
            tokio::spawn(async move { part(&mut socket, Some(goodbye)).await });
        }
        ended
    }

    /// Meanwhile clients come and go. When all have gone again, it is not wanted any more.
    async fn dial(&mut self) -> Result<(Upgraded, Greeting), Ended> {
        let upstream = Arc::clone(&self.hub.upstream);
        let dial = async {
            let mut browser = upstream.dial(BROWSER_PATH).await?;
            let greeting = match upstream.may_be_shim() {
                true => timeout(DIAL, greet(&mut browser))
                    .await
                    .unwrap_or(Err(DialError::TimedOut(DIAL)))?,
                false => Greeting::Browser(Value::Null),
            };
            Ok((browser, greeting))
        };
        let mut dial = pin!(dial);
        loop {
            tokio::select! {
                dialled = &mut dial => return dialled.map_err(Ended::Failed),
                ask = self.asked.recv() => self.take(ask).await?,
            }
            let is_wanted = !self.seats.is_empty() || !self.own.is_empty();
            if !is_wanted && self.hub.retire(&self.asked, true) {
                return Err(Ended::Unused);
            }
        }
    }

    async fn serve(
        &mut self,
        first: Option<String>,
        stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin),
    ) -> Result<Ended, Ended> {
        if let Some(said) = first {
            self.heard(said.into()).await?;
        }
        let held = std::mem::take(&mut self.held);
        self.act(held, None).await?;
        let mut stream = stream.peekable();
        let budget = self.budget.clone();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let until = self.used + self.hub.upstream.idle();
            tokio::select! {
                ask = self.asked.recv() => self.take(ask).await?,
                // A long message is not read before there is any room beside the one before.
                message = budget.some().then(|()| stream.next()) => match message {
                    Some(Ok(Message::Text(text))) => {
                        part_with(&text, &mut stream);
                        self.heard(text).await?;
                    }
                    Some(Ok(Message::Close(frame))) => return Ok(Ended::Goodbye(frame)),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Ok(Ended::Broken(cut(error))),
                    None => return Ok(Ended::Broken(Broken::Cut("it ended without a goodbye".into()))),
                },
                _ = ticks.tick(), if matches!(self.far, Far::Shim(_)) => self.tick().await?,
                _ = looks.tick() => {
                    if budget.is_spent() {
                        self.wait_on();
                    }
                    self.ping();
                }
                () = sleep_until(until), if self.seats.is_empty() && self.own.is_empty() => {
                    if self.hub.retire(&self.asked, true) {
                        return Ok(Ended::Unused);
                    }
                }
            }
        }
    }

    async fn take(&mut self, ask: Option<Ask>) -> Result<(), Ended> {
        self.used = Instant::now();
        let mut of_client = None;
        if matches!(ask, Some(Ask::Join(..) | Ask::Own(..))) {
            self.comers.fetch_sub(1, Ordering::Relaxed);
        }
        let outs = match ask {
            Some(Ask::Join(seat, place)) => {
                let client = seat.client;
                self.seats.insert(client, seat);
                self.core.join(client, &place)
            }
            Some(Ask::Says(client, text, share)) => {
                of_client = Some(share);
                self.core.client_says(client, text)
            }
            Some(Ask::Leave(client)) => {
                self.seats.remove(&client);
                self.core.leave(client)
            }
            Some(Ask::Own(method, params, answer)) => {
                let number = self.hub.next();
                self.own.insert(number, answer);
                self.core.own(number, method, params)
            }
            None => return Err(Ended::Unused),
        };
        self.act(outs.into(), of_client).await
    }

    /// Takes in what the browser's side says.
    async fn heard(&mut self, text: Utf8Bytes) -> Result<(), Ended> {
        let outs = match &mut self.far {
            Far::Unknown => Vec::new(),
            Far::Browser => self.core.browser_says(text),
            Far::Shim(bridge) => {
                let outs = bridge.shim_says(text);
                self.bridged(outs, None)
            }
        };
        self.act(outs.into(), None).await
    }

    async fn tick(&mut self) -> Result<(), Ended> {
        let Far::Shim(bridge) = &mut self.far else {
            return Ok(());
        };
        let outs = bridge.tick();
        let outs = self.bridged(outs, None);
        self.act(outs.into(), None).await
    }

    fn bridged(&mut self, outs: Vec<bridge::Out>, mut share: Option<Share>) -> Vec<Out> {
        let mut outs_of_core = Vec::new();
        for out in outs {
            match out {
                bridge::Out::Shim(message) => drop(self.up.send(Up::Text(spelled(message).into(), share.take()))),
                bridge::Out::Client(message) => outs_of_core.extend(self.core.browser_says(spelled(message))),
            }
        }
        outs_of_core
    }

    async fn act(&mut self, mut outs: VecDeque<Out>, mut share: Option<Share>) -> Result<(), Ended> {
        while let Some(out) = outs.pop_front() {
            match out {
                Out::Browser(text) => match &mut self.far {
                    Far::Unknown => self.held.push_back(Out::Browser(text)),
                    Far::Browser => drop(self.up.send(Up::Text(text, share.take()))),
                    Far::Shim(bridge) => {
                        let said = bridge.client_says(String::from(text));
                        outs.extend(self.bridged(said, share.take()));
                    }
                },
                Out::Client(client, text) => {
                    let share = self.room(text.len()).await;
                    self.tell(client, Down::Text(text, share));
                }
                Out::Joined(client) => self.tell(client, Down::Joined),
                Out::Closed(client, why) => {
                    self.tell(client, Down::End(Farewell::new(1000, why)));
                    self.seats.remove(&client);
                }
                Out::Answered(number, answer) => {
                    if let Some(waits) = self.own.remove(&number) {
                        let _ = waits.send(answer);
                    }
                }
                Out::Over => return Err(Ended::Over),
            }
        }
        Ok(())
    }

    fn tell(&self, client: u64, what: Down) {
        if let Some(seat) = self.seats.get(&client) {
            let _ = seat.queue.send(what);
        }
    }

    /// Waits until so many bytes may be put into a queue; and meanwhile the browser is not listened to.
    async fn room(&mut self, bytes: usize) -> Share {
        let budget = self.budget.clone();
        let mut share = pin!(budget.share(bytes));
        loop {
            tokio::select! {
                biased;
                share = &mut share => return share,
                () = sleep(LOOK_EVERY) => self.wait_on(),
            }
        }
    }

    /// There is no room: the browser is not listened to, and cannot be held to its silence.
    fn wait_on(&mut self) {
        if let Some(watch) = &self.watch {
            watch.pulse().pause();
        }
        self.evict();
    }

    fn evict(&mut self) {
        // What one that is alone says itself is none of others' waiting.
        if self.seats.len() < 2 && self.comers.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        self.seats.retain(|_, seat| {
            let stalls = seat
                .watch
                .pulse()
                .stalls_since()
                .is_some_and(|since| now >= since + STALLED);
            if stalls {
                seat.ends.cancel();
            }
            !stalls
        });
    }

    fn ping(&self) {
        if self.watch.as_ref().is_some_and(Watch::takes_ping) {
            let _ = self.up.send(Up::Ping);
        }
    }

    /// Tells everybody why, and sees them off.
    async fn end(mut self, ended: &Ended) {
        self.hub.retire(&self.asked, false);
        let upstream = &self.hub.upstream;
        let farewell = match ended {
            Ended::Unused => Farewell::new(1001, "the browser was not used any more"),
            Ended::Over => Farewell::new(1001, "a client has closed the browser"),
            Ended::Goodbye(Some(frame)) => Farewell::new(frame.code.into(), upstream.masked(&frame.reason)),
            Ended::Goodbye(None) => Farewell::new(1011, "the browser's side has closed the connection"),
            Ended::Failed(error) => Farewell::new(1011, upstream.masked(&error.to_string())),
            Ended::Broken(broken) => Farewell::new(broken.code(), upstream.masked(&broken.to_string())),
        };
        let has_failed = match ended {
            Ended::Failed(_) | Ended::Broken(_) => true,
            // A Worker says so when the browser behind it is lost.
            Ended::Goodbye(frame) => frame.as_ref().is_none_or(|frame| frame.code == CloseCode::Error),
            Ended::Unused | Ended::Over => false,
        };
        if has_failed {
            self.hub.events.emit(Event::BrowserFailed {
                upstream: upstream.name(),
                why: farewell.reason.clone(),
            });
        }
        for seat in self.seats.values() {
            let _ = seat.queue.send(Down::End(farewell.clone()));
        }
        for (_, waits) in self.own.drain() {
            let _ = waits.send(Err(farewell.reason.clone()));
        }
        let until = Instant::now() + STALLED;
        // Nobody can come any more, but some may have come just now.
        while !self.asked.is_empty() || !self.seats.is_empty() {
            match timeout_at(until, self.asked.recv()).await {
                Ok(Some(Ask::Join(seat, _))) => {
                    let _ = seat.queue.send(Down::End(farewell.clone()));
                    self.seats.insert(seat.client, seat);
                }
                Ok(Some(Ask::Own(_, _, waits))) => drop(waits.send(Err(farewell.reason.clone()))),
                Ok(Some(Ask::Leave(client))) => drop(self.seats.remove(&client)),
                Ok(Some(Ask::Says(..))) => {}
                Ok(None) => return,
                Err(_) => break,
            }
        }
        self.seats.values().for_each(|seat| seat.ends.cancel());
    }
}

/// Takes it, as it may be long.
fn spelled(message: Value) -> String {
    message.to_string()
}
