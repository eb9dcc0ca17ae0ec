// How h goes from block to block in the forward pass of small networks: the CL blocks of a cluster have all units, and
// serve a group of rows by themselves. Nothing outside of the cluster is waited for, so clusters may run in any order.
//
// A warp has 8 units with all their gates, and all of k. Rows of A: a tile holds two gates of those units, so that a lane
// ends up with all gates of unit lane / 4, for two rows of every 8, and no sum goes through memory. h lies in the shared
// memory of every block twice, in slots for even and odd steps: at step r a warp waits for h of step r - 1, reads it from
// slot (r - 1) & 1, and sends its 8 units of step r into slot r & 1 of all blocks by st.async. The mbarrier of a slot and
// block turns its phase when all bytes have come (mbarrier.complete_tx) and its first thread has said how many those are
// (arrive.expect_tx); bytes may come before that is said, since the count of bytes has a sign and the phase waits for the
// arrival. Why this is right in the memory model of PTX (PTX ISA: st.async, mbarrier, memory consistency model):
//
// * What is read has arrived: complete_tx releases, and every lane's try_wait acquires, both at the scope of the cluster.
//   st.async belongs to the generic proxy, as loads do, so no proxy fence is between. Source and target are blocks of one
//   cluster, which has more than one block; data and mbarrier are in the same block: what st.async asks for.
// * No slot is overwritten that somebody still reads. Who writes h of step r into slot r & 1 has all of h of step r - 1, to
//   which EVERY warp of EVERY block has sent something, for every row, after it had read h of step r - 2 from that slot:
//   its loads stand before a __syncwarp, which stands before its st.async, whose complete_tx the writer acquired. And for
//   rows that do something at step r - 1, what was sent was computed from what was read: a read that saw h of step r would
//   have made itself ("no thin air").
// * No phase is missed. That of h of step r turns again with h of step r + 2, for which all warps must have sent h of step
//   r + 1, for which each of them must have seen it turn. So one bit tells phases apart, and there is no more than one
//   step under way to a slot.
// * No block leaves while somebody writes to it: the last step sends nothing, and all that was sent before has been waited
//   for. In a run that was given up messages may be late; who has given up sends no more, and all meet before the end.
// * All waits end: those for a phase are counted, and barrier.cluster needs only that the blocks of a cluster run at once,
//   which the hardware promises, and that they get there, which the counts do.
#define UNIT(i) ((i) % NTHR / 32 * 8 + (i) % 32 / 4)  // of pair i of the block
#define ROW(i) ((i) / (2 * NTHR) * 8 + (i) % 4 * 2 + (i) / NTHR % 2)
#define PITCH (HP * ESZ % 128 == 64 ? HP : HP + 64 / ESZ)  // of a row of h: so that 8 lanes meet all banks
static_assert(U == 8 * W && PP == 2 * NT && PWW == W, "8 units of a warp");
#define PARTS (8 * ESZ / 16)                               // messages that 8 units of a row are
#define SENDS ((NB * PARTS * CL + 31) / 32)                // of a lane
struct Cluster {
  Mat<(G + 1) / 2, HP / KC, 1> mat;
  ET *slots, *own;  // [2][NB][PITCH]; of this warp [2][NB][8]
  u32 bars, bytes, first;
  int rows;
  template <class F> DEV void start(unsigned char* shared, u32* broken, const ET* w, int u0, int rows_, F h0) {
    bars = smem_addr(shared);
    slots = (ET*)(shared + 16);
    own = slots + 2 * NB * PITCH;
    mat.load_weights((u32*)(own + 2 * W * NB * 8), broken, [&](int i) -> const ET* {
      const int gate = i / 8;
      return gate < G ? w + ((size_t)gate * HP + u0 + threadIdx.x / 32 * 8 + i % 8) * HP : (const ET*)0; });
    own += mat.warp * 2 * NB * 8;
    first = u0 + mat.warp * 8;
    rows = rows_ < NB ? rows_ : NB;
    bytes = rows * HP * ESZ;
    // Before step 0 the state is in the slot of odd steps. Rows that do not exist stay 0.
    for (int i = threadIdx.x; i < 2 * NB * HP; i += NTHR) {
      const int k = i % HP, row = i / HP;
      slots[row * PITCH + k] = row >= NB && row - NB < rows ? h0(k, row - NB) : (ET)0;
    }
    if (threadIdx.x == 0) {
      mbar_init(bars, 1); mbar_init(bars + 8, 1);
      mbar_fence();
      mbar_expect(bars, bytes); mbar_expect(bars + 8, bytes);
    }
  }
  DEV void open() { __syncthreads(); cluster_sync(); }  // all blocks are here, with barriers that others may complete
  // Step r, up to the sums; whether the run was given up.
  template <class F> DEV bool run(int r, F shadow) {
    shadow();
    const int slot = (r + 1) & 1;
    if (r) {
      mbar_wait(bars + 8 * slot, (r - 1) >> 1 & 1, mat.dead, mat.broken);
      if (threadIdx.x == 0 && !mat.dead) mbar_expect(bars + 8 * slot, bytes);
    }
    const ET* from = slots + (slot * NB + (mat.lane >> 2)) * PITCH + (mat.lane & 3) * EPL;
    mat.multiply([&](int j, u32 (&v)[NT][4]) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const uint4 x = *(const uint4*)(from + n * 8 * PITCH + j * KC);
        v[n][0] = x.x; v[n][1] = x.y; v[n][2] = x.z; v[n][3] = x.w;
      }
    });
    return mat.dead || *mat.broken != 0;
  }
  DEV void sums(int p, float (&zh)[G]) const {
#pragma unroll
    for (int g = 0; g < G; ++g) zh[g] = mat.sum(g / 2, p / 2, g % 2 * 2 + p % 2);
  }
  DEV void put(int r, int unit, int row, float h) { own[((r & 1) * NB + row) * 8 + unit % 8] = E::store(h); }
  // What was put, in messages of 16 bytes. Two sides: a lane may still read one while others put into the other.
  DEV void send(int r) {
    __syncwarp();
    if (mat.dead) return;
    const int slot = r & 1;
#pragma unroll
    for (int k = 0; k < SENDS; ++k) {
      const int i = k * 32 + mat.lane, row = i / PARTS % NB, part = i % PARTS, block = i / (PARTS * NB);
      if (row < rows && block < CL) {
        const u32 to = smem_addr(slots + (slot * NB + row) * PITCH + first + part * EPL);
        store_async4(mapa(to, block), mapa(bars + 8 * slot, block), *(const uint4*)(own + (slot * NB + row) * 8 + part * EPL));
      }
    }
  }
  DEV void close() { __syncwarp(); cluster_sync(); }
};
