//! What a solver is told when something is wrong: with the server, with the connection, with its own calls.

use crate::server::{assert_names_the_place, config, connect, connect_with, key, other_key, serve};
use melissa_client::{Client, ClientConfig, ClientError, Doing, InitOutcome, Values};
use melissa_core::schema::Dtype;
use melissa_core::wire::auth::{self, Side};
use melissa_core::wire::handshake::{Challenge, Hello, Join, Proof, Refused, encode_frame};
use melissa_core::wire::header::{HEADER_SIZE, Header, HeaderError, Kind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Larger than what the buffers of both sockets hold together.
const MUCH: usize = 16_000_000;

/// The error of a client that sends more than the server reads, while the server does something.
fn error_of_a_blocked_send(
    server_does: impl FnOnce(crate::server::Peer) + Send + 'static,
) -> (ClientError, Client, String) {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome();
        // The window is full when nothing has moved for a while.
        let mut before = usize::MAX;
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let mut bytes = vec![0; 64 << 20];
            let waiting = peer.0.peek(&mut bytes).unwrap();
            if waiting == before {
                break;
            }
            before = waiting;
        }
        server_does(peer);
    });
    let mut client = connect_with(&address, "a", MUCH, Dtype::F32);
    let error = client.send("a", Values::F32(&vec![1.0; MUCH]), None).unwrap_err();
    server.join().unwrap();
    assert_names_the_place(&error, &address);
    (error, client, address)
}

#[test]
fn a_refusal_reaches_a_solver_that_is_blocked_in_send() {
    let (over, server_may_end) = mpsc::channel::<()>();
    let (error, mut client, _) = error_of_a_blocked_send(move |mut peer| {
        peer.refuse("step", "time step 0 came twice");
        // Still open and still not read: the refusal alone ends the send.
        std::thread::spawn(move || {
            let _ = server_may_end.recv();
            drop(peer);
        });
    });
    let ClientError::Refused { code, message, .. } = &error else { panic!("{error}") };
    assert_eq!((code.as_str(), message.as_str()), ("step", "time step 0 came twice"));
    let again = client.send("a", Values::F32(&vec![1.0; MUCH]), None).unwrap_err();
    assert_eq!(again.to_string(), error.to_string());
    assert_eq!(client.finalize(None).unwrap_err().to_string(), error.to_string());
    drop(over);
}

#[test]
fn a_refusal_is_told_even_when_the_server_resets_the_connection_after_it() {
    for _ in 0..5 {
        // Dropped with unread bytes: the kernel answers what still comes with a reset.
        let (error, ..) = error_of_a_blocked_send(|mut peer| peer.refuse("frame", "wrong checksum"));
        assert!(matches!(&error, ClientError::Refused { code, .. } if code == "frame"), "{error}");
    }
}

#[test]
fn a_refusal_between_two_sends_is_told_by_the_next() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome();
        peer.frame();
        peer.refuse("attempt", "attempt 3 of simulation 7 is known");
    });
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    client.send("a", Values::F64(&[1.0]), None).unwrap();
    server.join().unwrap();
    let error = client.send("a", Values::F64(&[2.0]), None).unwrap_err();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "attempt"), "{error}");
}

#[test]
fn a_stop_reaches_a_solver_that_is_blocked_in_send() {
    let (error, mut client, _) = error_of_a_blocked_send(|mut peer| {
        peer.control(Kind::Stop);
        let _ = std::io::copy(&mut peer.0, &mut std::io::sink());
    });
    assert!(matches!(error, ClientError::Stopped { .. }), "{error}");
    assert!(matches!(client.finalize(None), Err(ClientError::Stopped { .. })));
}

#[test]
fn a_stop_reaches_a_solver_that_skips_complete_steps_or_finalizes() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(|welcome| welcome.complete = vec![(0, 1000)]);
        peer.control(Kind::Stop);
        let mut peer = listener.accept_client();
        peer.frame();
        peer.control(Kind::Stop);
    });
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    let error = (0..1000)
        .find_map(|_| {
            std::thread::sleep(Duration::from_millis(2));
            client.send("a", Values::F64(&[1.0]), None).err()
        })
        .unwrap();
    assert!(matches!(error, ClientError::Stopped { .. }), "{error}");
    assert!(matches!(connect(&address).finalize(None), Err(ClientError::Stopped { .. })));
    server.join().unwrap();
}

#[test]
fn a_server_that_dies_while_a_solver_sends_is_told_from_a_refusal() {
    let (error, ..) = error_of_a_blocked_send(drop);
    let ClientError::ServerLost { doing, .. } = &error else { panic!("{error}") };
    assert_eq!(*doing, Doing::Sending { field: "a".into(), step: 0 });
}

#[test]
fn a_server_that_dies_while_a_solver_waits_is_told_with_what_it_waited_for() {
    let (address, server) = serve(|listener| {
        listener.accept_client().message::<Join>();
        listener.accept_client().frame();
        listener.accept().message::<Hello>();
    });
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    let error = client.send("a", Values::F64(&[1.0]), None).unwrap_err();
    assert!(matches!(&error, ClientError::ServerLost { doing: Doing::Joining, .. }), "{error}");
    assert!(error.to_string().contains("the server closed it"), "{error}");
    let error = connect(&address).finalize(None).unwrap_err();
    assert!(matches!(&error, ClientError::ServerLost { doing: Doing::Finalizing, .. }), "{error}");
    let error = Client::connect(config(&address), None).unwrap_err();
    let ClientError::ServerLost { doing: Doing::Greeting(Kind::Challenge), .. } = &error else {
        panic!("{error}")
    };
    assert_names_the_place(&error, &address);
    server.join().unwrap();
}

#[test]
fn a_server_with_another_key_gets_no_proof() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        peer.challenge(&other_key());
        assert!(peer.is_closed(), "the client said something more");
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    assert!(matches!(error, ClientError::WrongServer { .. }), "{error}");
    assert_names_the_place(&error, &address);
    server.join().unwrap();
}

#[test]
fn a_server_cannot_prove_itself_with_the_words_of_the_client() {
    // A proof of the client's side, as one would be that was reflected from another connection.
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        let hello: Hello = peer.message();
        let nonce = [9; 32];
        let proof = auth::prove(&key(), Side::Client, &crate::server::Peer::transcript(&hello, nonce));
        peer.say(&Challenge { protocol: 1, software: "mirror".into(), nonce, proof });
        assert!(peer.is_closed());
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    assert!(matches!(error, ClientError::WrongServer { .. }), "{error}");
    server.join().unwrap();
}

#[test]
fn a_client_with_another_key_is_told_what_the_server_says() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        let (hello, nonce) = peer.challenge(&key());
        let Proof { proof } = peer.message();
        let transcript = crate::server::Peer::transcript(&hello, nonce);
        assert!(!auth::verify(&other_key(), Side::Client, &transcript, &proof));
        peer.refuse("key", "the proof is wrong");
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    let ClientError::Refused { code, .. } = &error else { panic!("{error}") };
    assert_eq!(code, "key");
    server.join().unwrap();
}

#[test]
fn another_version_of_the_protocol_is_told_with_both_numbers() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        peer.message::<Hello>();
        peer.say(&Challenge { protocol: 2, software: "later".into(), nonce: [0; 32], proof: [0; 32] });
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    assert!(matches!(error, ClientError::Protocol { came: 2, expected: 1, .. }), "{error}");
    server.join().unwrap();
}

#[test]
fn a_silent_server_ends_the_handshake_at_its_timeout() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        peer.message::<Hello>();
        assert!(peer.is_closed());
    });
    let timeout = Duration::from_millis(300);
    let begun = Instant::now();
    let error = Client::connect(ClientConfig { timeout, ..config(&address) }, None).unwrap_err();
    assert!(begun.elapsed() >= timeout && begun.elapsed() < Duration::from_secs(5));
    let ClientError::HandshakeTimeout { expected: Kind::Challenge, .. } = &error else { panic!("{error}") };
    assert_names_the_place(&error, &address);
    server.join().unwrap();
}

#[test]
fn a_server_that_stays_busy_is_reported_at_the_timeout() {
    let (address, _server) = serve(|listener| {
        loop {
            let mut peer = listener.accept();
            peer.message::<Hello>();
            peer.refuse("busy", "64 handshakes are pending");
        }
    });
    let timeout = Duration::from_millis(300);
    let error = Client::connect(ClientConfig { timeout, ..config(&address) }, None).unwrap_err();
    assert!(matches!(&error, ClientError::Refused { code, .. } if code == "busy"), "{error}");
}

#[test]
fn an_address_where_nothing_listens_is_told_at_once() {
    let (address, server) = serve(drop);
    server.join().unwrap();
    let error = Client::connect(config(&address), None).unwrap_err();
    let ClientError::Connect { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::ConnectionRefused);
    assert_names_the_place(&error, &address);
}

#[test]
fn an_address_without_a_port_is_told_from_one_that_does_not_answer() {
    let error = Client::connect(config("localhost"), None).unwrap_err();
    assert!(matches!(error, ClientError::Address { .. }), "{error}");
    assert!(error.to_string().contains("host:port"), "{error}");
}

#[test]
fn a_rank_beyond_the_size_is_refused_before_anything_is_sent() {
    let error = Client::connect(ClientConfig { rank: 4, ..config("127.0.0.1:1") }, None).unwrap_err();
    assert!(error.to_string().contains("rank 4 is not below size 4"), "{error}");
}

/// The error of a client whose server answers Hello with these bytes and stays open.
fn error_of_a_first_answer(bytes: Vec<u8>) -> ClientError {
    let (address, server) = serve(move |listener| {
        let mut peer = listener.accept();
        peer.message::<Hello>();
        peer.raw(&bytes);
        peer.is_closed()
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    assert_names_the_place(&error, &address);
    server.join().unwrap();
    error
}

#[test]
fn a_simulation_that_is_given_up_while_its_solver_turns_to_the_next_rank_is_told_so() {
    let (greeted, rank_one_is_busy) = mpsc::channel();
    let (first, rank_zero) = serve(move |listener| {
        let mut peer = listener.accept_client();
        rank_one_is_busy.recv().unwrap();
        peer.refuse("finished", "simulation 7 was given up");
    });
    let (second, rank_one) = serve(move |listener| {
        let mut peer = listener.accept();
        let _: Hello = peer.message();
        greeted.send(()).unwrap();
        // The answer never comes.
        assert!(peer.is_closed());
    });
    let mut client = connect(&format!("{first},{second}"));
    let error = client.finalize(None).unwrap_err();
    let ClientError::Refused { at, code, message } = &error else { panic!("{error}") };
    assert_eq!((code.as_str(), message.as_str()), ("finished", "simulation 7 was given up"));
    assert_eq!(at.address, first);
    drop(client);
    rank_zero.join().unwrap();
    rank_one.join().unwrap();
}

#[test]
fn garbage_from_the_server_is_told_with_what_came() {
    let error = error_of_a_first_answer(b"SSH-2.0-OpenSSH_9.6\r\n".to_vec());
    let ClientError::Header { source: HeaderError::Magic { came }, .. } = &error else { panic!("{error}") };
    assert_eq!(came, b"SSH-");

    let mut damaged = encode_frame(Kind::Refused, &Refused { code: "busy".into(), message: String::new() });
    damaged[50] ^= 1;
    let error = error_of_a_first_answer(damaged);
    assert!(matches!(&error, ClientError::Header { source: HeaderError::Checksum { .. }, .. }), "{error}");

    let error = error_of_a_first_answer(Header::control(Kind::Challenge, 1 << 40).encode().to_vec());
    assert!(
        matches!(&error, ClientError::Header { source: HeaderError::PayloadTooLarge { .. }, .. }),
        "{error}"
    );

    let mut frame = Header::control(Kind::Challenge, 9).encode().to_vec();
    frame.extend_from_slice(b"{\"proof\":");
    let error = error_of_a_first_answer(frame);
    assert!(matches!(&error, ClientError::Message { .. }), "{error}");
}

#[test]
fn frames_that_do_not_belong_there_are_told_by_kind() {
    let data = Header { dtype: Some(Dtype::U8), ..Header::control(Kind::Data, 0) };
    for (bytes, kind) in [
        (data.encode().to_vec(), Kind::Data),
        (Header::control(Kind::FinalizeAck, 0).encode().to_vec(), Kind::FinalizeAck),
        // Whoever has not proved the key ends no solver with success.
        (Header::control(Kind::Stop, 0).encode().to_vec(), Kind::Stop),
    ] {
        let error = error_of_a_first_answer(bytes);
        assert!(matches!(&error, ClientError::UnexpectedFrame { came, .. } if *came == kind), "{error}");
    }
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome();
        peer.control(Kind::FinalizeAck);
    });
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    let sent = client.send("a", Values::F64(&[1.0]), None);
    server.join().unwrap();
    let error = sent.and_then(|()| client.send("a", Values::F64(&[1.0]), None)).unwrap_err();
    assert!(error.to_string().contains("nothing but Refused or Stop was expected"), "{error}");
}

#[test]
fn a_frame_that_ends_early_is_a_lost_server() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept();
        peer.message::<Hello>();
        peer.raw(&Header::control(Kind::Challenge, 100).encode()[..HEADER_SIZE - 10]);
    });
    let error = Client::connect(config(&address), None).unwrap_err();
    assert!(matches!(&error, ClientError::ServerLost { .. }), "{error}");
    server.join().unwrap();
}

/// The error of a first send that this Welcome answers.
fn error_of_a_welcome(
    change: impl FnOnce(&mut melissa_core::wire::handshake::Welcome) + Send + 'static,
) -> ClientError {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(change);
        peer.is_closed()
    });
    let mut client = connect_with(&address, "a", 4, Dtype::F64);
    let error = client.send("a", Values::F64(&[0.0; 4]), None).unwrap_err();
    assert!(server.join().unwrap(), "the client went on after {error}");
    assert_names_the_place(&error, &address);
    error
}

#[test]
fn a_welcome_that_does_not_fit_is_told_with_what_does_not() {
    let error = error_of_a_welcome(|welcome| welcome.fields[0].name = "b".into());
    assert!(error.to_string().contains("no place for field \"a\""), "{error}");
    let error = error_of_a_welcome(|welcome| welcome.fields[0].offset = 1);
    assert!(
        error.to_string().contains("4 elements of field \"a\" from offset 1 on end beyond its 4"),
        "{error}"
    );
    let error = error_of_a_welcome(|welcome| welcome.fields[0].dtype = Dtype::I32);
    assert!(matches!(error, ClientError::WrongDtype { wanted: Dtype::I32, got: Dtype::F64, .. }), "{error}");
    let error = error_of_a_welcome(|welcome| welcome.servers.push("node-2:4001".into()));
    let text = "MELISSA_SERVER_ADDRESS has 1 address, and the server has 2 ranks: 127.0.0.1:1, node-2:4001";
    assert!(error.to_string().contains(text), "{error}");
    let error = error_of_a_welcome(|welcome| welcome.distribution = "dice".into());
    assert!(error.to_string().contains("by the rule \"dice\", and this client knows round_robin"), "{error}");
}

#[test]
fn wrong_calls_are_told_apart_and_leave_the_connection_usable() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.welcome_with(|welcome| welcome.fields[1].dtype = Dtype::I64);
        peer.until_finalized()
    });
    let mut client = connect(&address);
    let send = |client: &mut Client, name: &str| match name {
        "b" => client.send("b", Values::I32(&[1]), None),
        name => client.send(name, Values::F64(&[1.0, 2.0]), None),
    };
    let text = |result: Result<_, ClientError>| {
        let error = result.unwrap_err();
        assert_names_the_place(&error, &address);
        error.to_string()
    };

    let told = text(send(&mut client, "a"));
    assert!(told.contains("field \"a\" was never declared. No field is: call melissa_init"), "{told}");
    assert_eq!(client.init("a", 2, Dtype::F64).unwrap(), InitOutcome::New);
    assert_eq!(client.init("b", 1, Dtype::I32).unwrap(), InitOutcome::New);
    assert_eq!(client.init("a", 2, Dtype::F64).unwrap(), InitOutcome::Again);
    let told = text(client.init("a", 3, Dtype::F64).map(drop));
    assert!(told.contains("with 2 elements of float64, and now again with 3 of float64"), "{told}");
    let told = text(client.init("", 3, Dtype::F64).map(drop));
    assert!(told.contains("1 to 256 bytes"), "{told}");
    let told = text(client.init("a\nb", 3, Dtype::F64).map(drop));
    assert!(told.contains("field \"a\\nb\" cannot be declared"), "{told}");
    let told = text(send(&mut client, "c"));
    assert!(told.contains("field \"c\" was never declared. Declared are: \"a\", \"b\""), "{told}");
    let told = text(client.send("a", Values::F64(&[1.0]), None));
    assert!(told.contains("\"a\" got 1 elements, and melissa_init declared 2"), "{told}");

    send(&mut client, "a").unwrap();
    let told = text(client.init("late", 1, Dtype::F64).map(drop));
    assert!(told.contains("\"late\" is declared after the first melissa_send"), "{told}");
    let told = text(client.send("b", Values::F32(&[1.0]), None));
    assert!(told.contains("keeps \"b\" as int64, and float32 cannot become that"), "{told}");
    let told = text(client.finalize(None));
    assert!(told.contains("1 of \"a\", 0 of \"b\""), "{told}");
    let told = text(send(&mut client, "a"));
    assert!(told.contains("sent step 1 of \"a\" before step 0 of \"b\""), "{told}");
    send(&mut client, "b").unwrap();
    // The order of the fields within a step is the solver's.
    send(&mut client, "b").unwrap();
    send(&mut client, "a").unwrap();
    client.finalize(None).unwrap();
    let told = text(send(&mut client, "a"));
    assert!(told.contains("melissa_send was called after melissa_finalize"), "{told}");

    let (frames, finalize) = server.join().unwrap();
    let came: Vec<_> = frames.iter().map(|(header, _)| (header.field, header.time_step)).collect();
    assert_eq!(came, [(0, 0), (1, 0), (1, 1), (0, 1)]);
    assert_eq!(finalize.time_step, 2);
}

#[test]
fn more_fields_than_a_join_can_hold_are_told_with_both_sizes() {
    let (address, server) = serve(|listener| listener.accept_client().is_closed());
    let mut client = connect(&address);
    for i in 0..600 {
        client.init(&format!("{}{i}", "x".repeat(100)), 1, Dtype::F64).unwrap();
    }
    let error = client.send(&format!("{}0", "x".repeat(100)), Values::F64(&[1.0]), None).unwrap_err();
    assert!(matches!(error, ClientError::TooManyFields { fields: 600, limit: 65536, .. }), "{error}");
    assert!(server.join().unwrap());
}

/// How long a wait goes on after its interrupt has become true.
fn interrupted(call: impl FnOnce(melissa_client::Interrupt<'_>) -> ClientError) -> ClientError {
    let now = AtomicBool::new(false);
    let mut since = Instant::now();
    let error = std::thread::scope(|scope| {
        let since = &mut since;
        let now = &now;
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            *since = Instant::now();
            now.store(true, Ordering::Release);
        });
        call(Some(&|| now.load(Ordering::Acquire)))
    });
    assert!(since.elapsed() < Duration::from_secs(2), "noticed after {:?}", since.elapsed());
    assert!(matches!(error, ClientError::Interrupted { .. }), "{error}");
    error
}

#[test]
fn an_interrupt_ends_every_wait() {
    let (address, server) = serve(|listener| {
        let _silent = listener.accept();
        let mut joined = listener.accept_client();
        joined.message::<Join>();
        let mut welcomed = listener.accept_client();
        welcomed.welcome();
        let mut finalized = listener.accept_client();
        finalized.frame();
        assert!(finalized.is_closed());
    });
    interrupted(|interrupt| Client::connect(config(&address), interrupt).unwrap_err());
    let mut client = connect_with(&address, "a", 1, Dtype::F64);
    interrupted(|interrupt| client.send("a", Values::F64(&[1.0]), interrupt).unwrap_err());
    let mut client = connect_with(&address, "a", MUCH, Dtype::F32);
    let error =
        interrupted(|interrupt| client.send("a", Values::F32(&vec![1.0; MUCH]), interrupt).unwrap_err());
    // Half a frame is out.
    assert_eq!(client.finalize(None).unwrap_err().to_string(), error.to_string());
    let mut client = connect(&address);
    interrupted(|interrupt| client.finalize(interrupt).unwrap_err());
    server.join().unwrap();
}

extern "C" fn ignore(_: libc::c_int) {}

#[test]
fn signals_neither_break_a_wait_nor_delay_its_interrupt() {
    let (address, server) = serve(|listener| {
        let mut peer = listener.accept_client();
        peer.frame();
        std::thread::sleep(Duration::from_millis(300));
        peer.control(Kind::FinalizeAck);
    });
    let mut client = connect(&address);
    // SAFETY: a zeroed sigaction is a valid one; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ignore as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    // SAFETY: no preconditions.
    let this_thread = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    let asked = std::cell::Cell::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                // SAFETY: the thread waits in this scope, so that it lives.
                assert_eq!(unsafe { libc::pthread_kill(this_thread, libc::SIGUSR1) }, 0);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let interrupt = || {
            asked.set(asked.get() + 1);
            false
        };
        let finalized = client.finalize(Some(&interrupt));
        done.store(true, Ordering::Release);
        finalized.unwrap();
    });
    assert!(asked.get() > 5, "asked {} times in 300 ms with a signal every 5 ms", asked.get());
    server.join().unwrap();
}
