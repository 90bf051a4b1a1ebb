// Workgroups wait for each other inside one dispatch, once a round. No API promises that they all
// run at once, so the spins of a workgroup are bounded over all rounds, and a workgroup that gives
// up makes the others give up.
//
// Storage atomics are relaxed, at device scope. `storageBarrier` makes a thread's writes visible in
// that scope before its counter grows, and @coherent makes the loads bypass the first cache.

struct Args {
    groups: u32,
    rounds: u32,
    spins: u32,
}

struct Outcome {
    gave_up: atomic<u32>, // workgroups
    wrong: atomic<u32>, // values that a neighbour had not written yet
    rounds: atomic<u32>, // completed, over all workgroups
}

@group(0) @binding(0) var<storage, read> args: Args;
@group(0) @binding(1) var<storage, read_write> arrived: atomic<u32>;
@group(0) @binding(2) @coherent var<storage, read_write> values: array<u32>; // [2, groups]
@group(0) @binding(3) var<storage, read_write> outcome: Outcome;

var<workgroup> open: u32;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group = id.x;
    var spins = args.spins;
    for (var round = 1u; round <= args.rounds; round++) {
        // Two slots in turn: a neighbour may read the last round's value still.
        let slot = (round % 2u) * args.groups;
        if thread == 0u {
            values[slot + group] = round;
        }
        storageBarrier();
        workgroupBarrier();
        if thread == 0u {
            let goal = round * args.groups;
            atomicAdd(&arrived, 1u);
            while atomicLoad(&arrived) < goal && spins > 0u && atomicLoad(&outcome.gave_up) == 0u {
                spins -= 1u;
            }
            open = u32(atomicLoad(&arrived) >= goal);
        }
        storageBarrier();
        if workgroupUniformLoad(&open) == 0u {
            if thread == 0u {
                atomicAdd(&outcome.gave_up, 1u);
            }
            return;
        }
        if thread == 0u {
            atomicAdd(&outcome.wrong, u32(values[slot + (group + 1u) % args.groups] != round));
            atomicAdd(&outcome.rounds, 1u);
        }
    }
}
