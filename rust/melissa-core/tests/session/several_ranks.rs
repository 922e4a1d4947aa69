//! Clients that do on one of several server ranks what they should not, or not on all of them alike: each is told, and
//! harms no other simulation.

use crate::client::{Answer, Client, Identity};
use crate::server::Server;
use crate::study::{FIELDS, bytes_of, config, eventually, fifo, key, send_step};
use melissa_core::ledger::Reason;
use melissa_core::schema::Dtype;
use melissa_core::session::{SessionConfig, Status};
use melissa_core::wire::distribution::Distribution;
use std::time::Duration;

/// Two server ranks, and so many simulations with their first attempt registered.
fn two_ranks(planned: u32, assembly_slots: usize, change: impl Fn(SessionConfig) -> SessionConfig) -> Server {
    let server = Server::start(2, &change(config(planned)), &fifo(100, assembly_slots));
    (0..planned).for_each(|simulation| server.register(simulation, 1, 0).unwrap());
    server
}

/// A client of one rank that has joined both server ranks.
fn joined(server: &Server, who: &Identity) -> Vec<Client> {
    server.ranks.iter().map(|study| study.joined(who.clone())).collect()
}

fn send(server: &Server, clients: &mut [Client], steps: std::ops::Range<u64>) {
    for step in steps {
        let client = &mut clients[server.owner(clients[0].who.simulation, step)];
        assert!(send_step(client, 0, step));
    }
}

/// An honest client is served by both server ranks, to the end.
fn honest(server: &Server, simulation: u32, attempt: u32, steps: u64) {
    let mut clients = joined(server, &Identity::of(simulation).attempt(attempt));
    let complete = |client: &Client, step| {
        client.welcome.as_ref().unwrap().complete.iter().any(|range| (range.0..=range.1).contains(&step))
    };
    for step in 0..steps {
        let client = &mut clients[server.owner(simulation, step)];
        assert!(complete(client, step) || send_step(client, 0, step));
    }
    for (rank, client) in clients.iter_mut().enumerate() {
        client.finalize(steps).unwrap();
        server.ranks[rank].session.confirm(simulation).unwrap();
    }
}

fn refused(server: &Server, rank: usize, who: Identity) -> (String, String) {
    server.connect(rank, who).err().expect("it was accepted").refused()
}

/// What each server rank was trained on, in the order of simulations and time steps, once reception is over.
fn trained(server: &Server) -> Vec<Vec<(u32, u64)>> {
    let drain = |study: &crate::study::Study| {
        let mut keys: Vec<_> = study.drain().iter().map(|key| (key.simulation, key.time_step)).collect();
        keys.sort_unstable();
        let sums = study.session.close_ledger(Reason::Untrained);
        assert_eq!((sums.declared, sums.dropped()), (keys.len() as u64, 0));
        keys
    };
    server.ranks.iter().map(drain).collect()
}

#[test]
fn a_step_for_another_server_rank_ends_its_connection_and_the_next_attempt_brings_it_where_it_belongs() {
    let server = two_ranks(2, 1, |config| config);
    let mut astray = joined(&server, &Identity::of(0));
    send(&server, &mut astray, 0..2);
    assert!(send_step(&mut astray[1], 0, 2));
    let (code, message) = astray[1].answer().refused();
    assert_eq!(code, "step");
    assert!(message.contains("which belongs to server rank 0, and this is server rank 1 of 2"), "{message}");
    let state = server.ranks[1].wait_status(0, Status::Disconnected);
    assert!(state.error.contains("belongs to server rank 0"), "{}", state.error);
    honest(&server, 1, 1, 4);
    server.register(0, 2, 0).unwrap();
    honest(&server, 0, 2, 4);
    assert_eq!(trained(&server), [[(0, 0), (0, 2), (1, 1), (1, 3)], [(0, 1), (0, 3), (1, 0), (1, 2)]]);
}

#[test]
fn a_client_of_another_size_on_each_server_rank_waits_for_itself_alone() {
    let timeout = Duration::from_millis(200);
    let server = two_ranks(2, 1, |config| SessionConfig { simulation_timeout: Some(timeout), ..config });
    let _alone = server.ranks[0].joined(Identity::of(0));
    let mut of_three = server.connect(1, Identity::of(0).rank(2, 3)).unwrap();
    of_three.send_join(&FIELDS);
    let state = server.ranks[1].wait_status(0, Status::Silent);
    assert!(state.error.contains("waits for ranks that have not joined for 0.2 s: 0, 1"), "{}", state.error);
    honest(&server, 1, 1, 4);
    server.register(0, 2, 0).unwrap();
    assert_eq!(of_three.answer().refused().0, "attempt");
    honest(&server, 0, 2, 2);
    assert_eq!(trained(&server), [vec![(0, 0), (1, 1), (1, 3)], vec![(0, 1), (1, 0), (1, 2)]]);
}

/// Both ranks of a client.
fn pair(server: &Server, rank: usize, simulation: u32) -> Vec<Client> {
    let mut ranks: Vec<Client> =
        (0..2).map(|each| server.connect(rank, Identity::of(simulation).rank(each, 2)).unwrap()).collect();
    for client in &mut ranks {
        client.send_join(&[("temperature", Dtype::F32, 5), ("flux", Dtype::F64, 3)]);
    }
    ranks
}

fn send_shares(ranks: &mut [Client], step: u64) {
    let key = key(ranks[0].who.simulation, 0, step);
    for (each, client) in (0..).zip(ranks) {
        assert!(client.send(0, step, &bytes_of(key, 0, Dtype::F32, 5 * each, 5)));
        assert!(client.send(1, step, &bytes_of(key, 1, Dtype::F64, 3 * each, 3)));
    }
}

/// Decision 0005: promises that are taken in another order than that of the server ranks may let two wait for each other.
#[test]
fn clients_that_join_in_another_order_and_wait_for_each_other_are_told_of_as_silent() {
    let timeout = Duration::from_millis(200);
    let server = two_ranks(2, 1, |config| SessionConfig { simulation_timeout: Some(timeout), ..config });
    let welcome = |ranks: &mut [Client]| ranks.iter_mut().for_each(|rank| drop(rank.read_welcome().unwrap()));
    let mut first = [pair(&server, 0, 0), Vec::new()];
    welcome(&mut first[0]);
    // The other one begins with server rank 1.
    let mut second = [Vec::new(), pair(&server, 1, 1)];
    welcome(&mut second[1]);
    first[1] = pair(&server, 1, 0);
    second[0] = pair(&server, 0, 1);
    // Where it has its promise each is silent, and where it waits for one it is not: it cannot send.
    server.ranks[0].wait_status(0, Status::Silent);
    server.ranks[1].wait_status(1, Status::Silent);
    for (rank, simulation) in [(1, 0), (0, 1)] {
        assert_eq!(server.ranks[rank].state(simulation).unwrap().status, Status::Connected);
    }
    // The attempt that did not keep the order is given up: the other one goes on at once.
    for study in &server.ranks {
        study.session.abandon_attempt(1).unwrap();
    }
    assert_eq!(second[1][0].answer().refused().0, "attempt");
    welcome(&mut first[1]);
    for step in 0..2 {
        send_shares(&mut first[step as usize], step);
    }
    for ranks in &mut first {
        ranks.iter_mut().for_each(|rank| rank.send_finalize(2));
        ranks.iter_mut().for_each(|rank| rank.read_acknowledgement().unwrap());
    }
    server.ranks.iter().for_each(|study| study.session.confirm(0).unwrap());
    server.register(1, 2, 0).unwrap();
    honest(&server, 1, 2, 2);
    assert_eq!(trained(&server), [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]);
}

#[test]
fn a_total_that_is_not_what_came_to_a_server_rank_is_told_or_refused() {
    let server = two_ranks(3, 1, |config| config);
    // More than can have come to this rank.
    let mut more = joined(&server, &Identity::of(0));
    send(&server, &mut more, 0..4);
    more[0].finalize(4).unwrap();
    more[1].send_finalize(6);
    let (code, message) = more[1].answer().refused();
    assert_eq!(code, "step");
    assert!(message.contains("has sent or skipped 6 time steps, and 5 of them came"), "{message}");
    // Finished on one rank, and not on the other: it is not final, and runs again.
    server.ranks[0].wait_status(0, Status::Finished);
    server.ranks[1].wait_status(0, Status::Disconnected);
    let error = server.ranks[1].session.confirm(0).unwrap_err().to_string();
    assert!(error.contains("cannot be confirmed: it is disconnected on server rank 1"), "{error}");
    server.register(0, 2, 0).unwrap();
    honest(&server, 0, 2, 4);
    // Less on one rank than on the other: that rank says what it has.
    let mut less = joined(&server, &Identity::of(1));
    send(&server, &mut less, 0..4);
    for (rank, total) in [(0, 4), (1, 2)] {
        less[rank].finalize(total).unwrap();
    }
    assert_eq!(server.ranks[0].wait_status(1, Status::Finished).error, "");
    let error = server.ranks[1].wait_status(1, Status::Finished).error;
    let told = "has sent 1 time steps that belong to this server rank, and 2 are complete";
    assert!(error.contains(told), "{error}");
    server.ranks.iter().for_each(|study| study.session.confirm(1).unwrap());
    honest(&server, 2, 1, 4);
    let sums = trained(&server);
    assert_eq!((sums[0].len(), sums[1].len()), (6, 6));
}

#[test]
fn a_total_of_a_simulation_that_sends_nothing_here_does_not_stand_for_the_study() {
    let by_simulation = |config| SessionConfig { distribution: Distribution::Simulation, ..config };
    let server = two_ranks(4, 1, by_simulation);
    let expected =
        || -> Vec<_> { server.ranks.iter().map(|study| study.session.expected_samples()).collect() };
    // All steps of simulation 0 go to server rank 0: rank 1 cannot know how many they were.
    let mut wrong = joined(&server, &Identity::of(0));
    send(&server, &mut wrong, 0..3);
    wrong[0].finalize(3).unwrap();
    wrong[1].finalize(u64::MAX).unwrap();
    server.ranks.iter().for_each(|study| study.session.confirm(0).unwrap());
    assert_eq!(expected(), [Some(6), None]);
    honest(&server, 1, 1, 3);
    assert_eq!(expected(), [Some(6), Some(6)]);
    (2..4).for_each(|simulation| honest(&server, simulation, 1, 3));
    assert_eq!(trained(&server).iter().map(Vec::len).collect::<Vec<_>>(), [6, 6]);
}

#[test]
fn an_attempt_of_before_is_refused_while_its_simulation_is_finished_opened_again_and_confirmed() {
    let server = two_ranks(2, 1, |config| config);
    let mut clients = joined(&server, &Identity::of(0));
    send(&server, &mut clients, 0..2);
    clients[0].finalize(2).unwrap();
    let (code, message) = refused(&server, 0, Identity::of(0));
    assert_eq!(code, "finished");
    assert!(message.contains("is finished already"), "{message}");
    // It dies before it has finalized on server rank 1, and runs again.
    drop(clients);
    server.ranks[1].wait_status(0, Status::Disconnected);
    server.register(0, 2, 0).unwrap();
    for rank in 0..2 {
        let (code, message) = refused(&server, rank, Identity::of(0));
        assert_eq!(code, "attempt");
        assert!(
            message.contains("attempt 2 of simulation 0 is the one that runs, and attempt 1"),
            "{message}"
        );
    }
    let mut clients = joined(&server, &Identity::of(0).attempt(2));
    assert_eq!(clients[0].welcome.as_ref().unwrap().complete, [(0, 0)]);
    assert_eq!(clients[1].welcome.as_ref().unwrap().complete, [(1, 1)]);
    clients.iter_mut().for_each(|client| client.finalize(2).unwrap());
    for study in &server.ranks {
        study.session.confirm(0).unwrap();
    }
    for (rank, attempt) in [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)] {
        assert_eq!(refused(&server, rank, Identity::of(0).attempt(attempt)).0, "finished");
    }
    assert!(server.register(0, 3, 0).unwrap_err().to_string().contains("it is finished already"));
    eventually("all refusals are counted", || {
        let counted = server.ranks.iter().map(|study| study.session.counters().connections_refused);
        counted.sum::<u64>() == 9
    });
    honest(&server, 1, 1, 2);
    assert_eq!(trained(&server), [[(0, 0), (1, 1)], [(0, 1), (1, 0)]]);
}

#[test]
fn a_rank_that_has_its_answer_hears_nothing_of_a_stop_although_its_simulation_runs_again() {
    let server = two_ranks(1, 1, |config| config);
    let mut before = joined(&server, &Identity::of(0));
    send(&server, &mut before, 0..2);
    before[0].finalize(2).unwrap();
    server.register(0, 2, 0).unwrap();
    assert_eq!(before[1].answer().refused().0, "attempt");
    let mut now = joined(&server, &Identity::of(0).attempt(2));
    for study in &server.ranks {
        study.session.stop().unwrap();
    }
    for client in &mut now {
        assert_eq!(client.answer(), Answer::Stop);
    }
    assert!(!before[0].has_answer());
    // It may close, or say what nobody expects of it any more.
    before[0].send_finalize(2);
    assert_eq!(before[0].answer().refused().0, "protocol");
}

#[test]
fn a_finished_simulation_that_is_opened_again_for_other_parameters_sends_all_of_its_steps_anew() {
    let server = two_ranks(2, 1, |config| SessionConfig { nb_time_steps: Some(2), ..config });
    let mut clients = joined(&server, &Identity::of(0));
    send(&server, &mut clients, 0..2);
    clients[0].finalize(2).unwrap();
    drop(clients);
    server.ranks[1].wait_status(0, Status::Disconnected);
    // On server rank 0 all are finished now, and one of them is not final.
    honest(&server, 1, 1, 2);
    assert!(server.ranks.iter().all(|study| !study.session.reception_over()));
    server.register(0, 2, 1).unwrap();
    let mut clients = joined(&server, &Identity::of(0).attempt(2));
    for (step, client) in (0..).zip(&mut clients) {
        let complete = &client.welcome.as_ref().unwrap().complete;
        assert!(complete.is_empty(), "of other parameters: {complete:?}");
        assert!(send_step(client, 1, step));
    }
    clients.iter_mut().for_each(|client| client.finalize(2).unwrap());
    for (step, study) in (0..).zip(&server.ranks) {
        study.session.confirm(0).unwrap();
        assert_eq!(study.session.expected_samples(), Some(3));
        assert_eq!(study.drain(), [key(0, 0, step), key(1, 0, 1 - step), key(0, 1, step)]);
        let sums = study.session.close_ledger(Reason::Untrained);
        assert_eq!((sums.declared, sums.trained, sums.dropped()), (3, 3, 0));
    }
}
