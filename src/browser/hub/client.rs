//! One client: from its first command to its end.

use std::{io, sync::Arc};

use futures_util::{Sink, SinkExt, Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Error, Message, protocol::Role},
};

use super::{
    Down, Farewell, Hub, Member, Says,
    apart::Apart,
    core::Place,
    intake::{Given, Metered},
    limits, part,
    text::part_with,
};
use crate::browser::{
    pulse::{LOOK_EVERY, OURS, Pulse, Watch, Watched},
    relay::{Broken, drain},
    session::{hold, refuse},
    upstream::PLATFORM_MAX,
};

/// How a client came to its end.
enum End {
    /// It said goodbye.
    Theirs,
    Ours(Farewell),
}

impl From<Broken> for End {
    fn from(broken: Broken) -> End {
        End::Ours(Farewell::new(broken.code(), broken.to_string()))
    }
}

/// Serves a client until either side ends it. `held` is what it has sent already.
pub async fn serve(hub: &Arc<Hub>, client: impl AsyncRead + AsyncWrite + Unpin, path: &str, mut held: Vec<u8>) {
    let (mut client, watch) = Watched::new(client);
    let place = match path.strip_prefix("/devtools/page/") {
        Some(id) => Place::Page(id.to_owned()),
        None => Place::Browser,
    };
    let Some(mut member) = hub.join(place, watch.clone()) else {
        refuse(&mut client, &held, "there is no such page: no browser is up").await;
        return;
    };
    let joined = tokio::select! {
        joined = member.joined() => joined,
        farewell = hold(&mut client, &mut held) => {
            let _ = client.write_all(&farewell).await;
            let _ = client.shutdown().await;
            return;
        }
    };
    if let Err(farewell) = joined {
        refuse(&mut client, &held, &farewell.reason).await;
        return;
    }
    let intake = member.says.running.intake.clone();
    let client = Metered::new(Apart::new(client, &held), watch.clone(), intake);
    let given = client.given();
    let socket = WebSocketStream::from_partially_read(client, held, Role::Server, Some(limits())).await;
    let (mut sink, mut stream) = socket.split();
    let end = {
        let Member { queue, says, ends, .. } = &mut member;
        tokio::select! {
            end = read(&mut stream, says, &given) => end,
            end = write(&mut sink, queue, &watch) => end,
            () = ends.cancelled() => End::Ours(Farewell::new(1011, "it took nothing for long, while others waited")),
            () = watch.ends(Pulse::is_silent) => Broken::ClientSilent.into(),
        }
    };
    // And with it what it was still to be told.
    drop(member);
    let Ok(mut socket) = sink.reunite(stream) else {
        return;
    };
    match end {
        End::Theirs => part(&mut socket, None).await,
        End::Ours(farewell) => {
            part(&mut socket, Some(farewell.frame())).await;
            drain(socket.get_mut()).await;
        }
    }
}

async fn read(stream: &mut (impl Stream<Item = Result<Message, Error>> + Unpin), says: &Says, given: &Given) -> End {
    let mut stream = stream.peekable();
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                says.text(text.clone(), given.take()).await;
                part_with(&text, &mut stream);
            }
            Some(Ok(Message::Close(_))) => return End::Theirs,
            Some(Ok(Message::Binary(_))) => return Broken::Binary.into(),
            Some(Ok(_)) => {}
            Some(Err(Error::Capacity(_))) => return Broken::TooLong(PLATFORM_MAX).into(),
            Some(Err(error @ (Error::Protocol(_) | Error::Utf8(_)))) => {
                return Broken::Garbled(error.to_string()).into();
            }
            Some(Err(Error::Io(error))) if error.kind() == io::ErrorKind::TimedOut => return Broken::Halfway.into(),
            Some(Err(_)) | None => return Broken::ClientGone.into(),
        }
    }
}

async fn write(
    sink: &mut (impl Sink<Message, Error = Error> + Unpin),
    queue: &mut UnboundedReceiver<Down>,
    watch: &Watch,
) -> End {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let sent = tokio::select! {
            down = queue.recv() => match down {
                // A message's bytes count until they have gone.
                Some(Down::Text(text, _share)) => text.send(sink).await,
                Some(Down::Joined) => continue,
                Some(Down::End(farewell)) => return End::Ours(farewell),
                None => return End::Ours(Farewell::new(1011, "the browser is gone")),
            },
            _ = looks.tick() => {
                if !watch.takes_ping() {
                    continue;
                }
                sink.send(Message::Ping(OURS.into())).await
            }
        };
        if sent.is_err() {
            return Broken::ClientGone.into();
        }
    }
}
