use super::*;
use crate::model::device::test_device;
use crate::plan::{DeviceCaps, Mode, RunPurpose};
use crate::spec::config::GruConfig;
use crate::spec::head::Head;
use crate::spec::loss::Loss;
use crate::spec::options::RunOptions;
use crate::spec::params::ParamLayout;

fn session() -> Session {
    let config = GruConfig::new(3, 5);
    let plan = Plan::new(&config, config.shape(4, 2).unwrap(), Mode::Inference).unwrap();
    pollster::block_on(Session::new(&test_device().1, plan, &[])).unwrap()
}

#[test]
fn integers_and_floats_survive_a_write_and_a_read() {
    let mut session = session();
    let [flags, x] = ["step_flags", "x"].map(|name| session.plan().buffer(name).unwrap());
    pollster::block_on(session.write(flags, 1, &[7_u32, 5], Wait::Block)).unwrap();
    pollster::block_on(session.write(x, 2, &[0.5_f32], Wait::Block)).unwrap();
    let got = pollster::block_on(session.read::<u32>(&[(flags, 0..4)], Wait::Block)).unwrap();
    assert_eq!(got, [[0, 7, 5, 0]]);
    let got = pollster::block_on(session.read::<f32>(&[(x, 0..3)], Wait::Block)).unwrap();
    assert_eq!(got, [[0.0, 0.0, 0.5]]);
}

#[test]
#[should_panic(expected = "the element type of step_flags")]
fn floats_cannot_be_written_to_a_buffer_of_integers() {
    let mut session = session();
    let flags = session.plan().buffer("step_flags").unwrap();
    drop(pollster::block_on(session.write(flags, 0, &[0.0_f32], Wait::Block)));
}

#[test]
#[should_panic(expected = "1..9 is out of range for the 8 elements of step_flags")]
fn a_write_past_the_end_of_a_buffer_panics() {
    let mut session = session();
    let flags = session.plan().buffer("step_flags").unwrap();
    drop(pollster::block_on(session.write(flags, 1, &[0_u32; 8], Wait::Block)));
}

#[test]
fn an_input_that_is_zero_is_not_cleared_again() {
    let (_, gpu) = test_device();
    let config = GruConfig::new(2, 3);
    let plan = Plan::new(&config, config.shape(4, 2).unwrap(), Mode::Training).unwrap();
    let len = |id: BufferId| plan.spec(id).len;
    let training = plan.run_buffers().training.clone().unwrap();
    let (dy, dstates) = (training.dy, training.dstates);
    let mut session = pollster::block_on(Session::new(&gpu, plan.clone(), &[])).unwrap();
    let mut write = |id: BufferId, value: Option<f32>| {
        match value {
            Some(value) => {
                let data = vec![value; len(id)];
                pollster::block_on(session.write(id, 0, &data, Wait::Block)).unwrap();
            }
            None => session.clear(id, 0..len(id)),
        }
        let queued = session.prologue.len();
        pollster::block_on(session.run(Pass::Backward)).unwrap();
        let whole = [(id, 0..len(id))];
        let read = pollster::block_on(session.read::<f32>(&whole, Wait::Block));
        (queued, read.unwrap().swap_remove(0)[0])
    };
    // New buffers are zero.
    assert_eq!(write(dy, None), (0, 0.0));
    assert_eq!(write(dy, Some(1.0)), (0, 1.0));
    assert_eq!(write(dy, None), (1, 0.0));
    assert_eq!(write(dy, None), (0, 0.0));
    // Kernels write the gradients of the states, so they are cleared each time.
    for _ in 0..2 {
        assert_eq!(write(dstates, None).0, 1);
    }
}

/// A buffer that nothing writes needs no clear, and a buffer that a kernel writes is not an input.
#[test]
fn the_head_writes_dy_or_dy_stays_zero() {
    for (head, role) in [(Head::last(2), Role::Zeros), (Head::every_step(2), Role::Scratch)] {
        let layout = ParamLayout::with_head(&GruConfig::pytorch(2, 3), head).unwrap();
        let shape = layout.config().shape(4, 2).unwrap();
        let (options, purpose) = (RunOptions::default(), RunPurpose::Loss(Loss::MeanSquared));
        let caps = DeviceCaps::WEBGPU;
        let plan = Plan::of_run(&layout, shape, Mode::Training, options, purpose, &caps);
        let plan = plan.unwrap();
        let dy = plan.run_buffers().training.as_ref().unwrap().dy;
        assert_eq!(plan.spec(dy).role, role);
        let stages = plan.forward().iter().chain(plan.backward());
        let dispatches: Vec<_> = stages.flat_map(|stage| stage.dispatches().0).collect();
        let written: Vec<_> = dispatches
            .iter()
            .flat_map(|dispatch| dispatch.bindings.iter().zip(dispatch.kernel.bindings))
            .filter(|(_, binding)| binding.is_written())
            .map(|(slice, _)| slice.buffer)
            .collect();
        assert_eq!(written.contains(&dy), role == Role::Scratch);
        let inputs = plan.buffers().iter().enumerate();
        let mut inputs = inputs.filter(|(_, spec)| spec.role == Role::Input);
        assert!(inputs.all(|(i, _)| !written.contains(&BufferId(i))));
    }
}
